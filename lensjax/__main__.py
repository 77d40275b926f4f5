"""`python -m lensjax`."""

from lensjax.cli.main import main

main()
