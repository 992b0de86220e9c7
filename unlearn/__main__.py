"""``python -m unlearn``: the command line."""

from unlearn.cli import main

main()
