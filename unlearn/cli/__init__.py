"""The command line: parse, call, print. Nothing here imports torch before a command needs it."""

from unlearn.cli.app import app, main

__all__ = ["app", "main"]
