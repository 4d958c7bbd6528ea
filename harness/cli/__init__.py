"""The command `dit-harness`: parse, call, print."""
