"""The training of one cell."""
