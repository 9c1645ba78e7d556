"""``python -m funcrobust``: the command line."""

from funcrobust.cli import main

main()
