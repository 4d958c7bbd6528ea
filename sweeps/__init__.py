"""What to run: sweep files (TOML) and the grid of cells they describe. Imports no torch."""
