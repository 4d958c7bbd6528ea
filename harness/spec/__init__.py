"""What is asked: specs and their ids. Imports neither torch nor files."""
