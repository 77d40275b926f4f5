"""Tasks: rows of a source, made into prompts and targets, tokens, and batches."""
