"""One module for each source of rows, which registers it in `lensjax.tasks.source.SOURCES` under its own name."""
