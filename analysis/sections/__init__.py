"""The sections of a report: each takes tables, asks for fits and figures, and adds to the page."""
