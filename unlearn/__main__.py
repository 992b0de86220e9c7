"""``python -m unlearn``: the command line."""

from unlearn.cli import main

if __name__ == "__main__":
    main()
