"""The command line: ``finapi-session``."""
