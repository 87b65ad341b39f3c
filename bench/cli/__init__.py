"""The command line: one module per command; torch is imported only by commands that need it."""
