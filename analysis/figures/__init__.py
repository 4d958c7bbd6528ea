"""Figures: each is a function of a table (and a fit) that returns a matplotlib Figure; `save` makes files of it."""
