"""The command line: one file a group of commands, each of which parses, calls one function and prints what it made."""

from .main import main

__all__ = ["main"]
