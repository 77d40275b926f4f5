"""`python -m lensjax`."""

from lensjax.cli import main

main()
