"""The joint fit: all curves of a task at once."""
