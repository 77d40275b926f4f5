"""Task data: from rows to tokens, and from tokens to batches whose order is a pure function of seed and step."""
