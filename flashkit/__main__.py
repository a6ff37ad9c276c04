"""`python -m flashkit`: the same as the `flashkit` command."""

from flashkit.cli import main

main()
