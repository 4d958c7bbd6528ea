"""Understand it: tables, fits, comparisons, figures and reports of collected records. Imports no torch."""
