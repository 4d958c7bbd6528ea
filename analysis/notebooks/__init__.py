"""Notebooks as py:percent sources; they call the library and compute nothing themselves."""
