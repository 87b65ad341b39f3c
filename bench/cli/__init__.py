"""The command line: one module a command; nothing here loads torch before a command needs it."""
