"""Pages, figures, and terminal tables, made of typed results; nothing is computed here."""
