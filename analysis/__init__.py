"""Analysis of collected records: tables, fits, comparisons, figures and reports. Imports no torch."""
