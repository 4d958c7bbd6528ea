"""What is on disk: run folders, studies and their tables. Imports neither torch nor numpy."""
