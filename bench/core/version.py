"""The single definition of this project's version."""

__version__ = "0.1.0.dev0"
