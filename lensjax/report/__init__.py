"""Pages and figures made of typed results; nothing is computed here."""
