"""`python -m harness.cli` is `dit-harness`."""

from harness.cli.main import main

main()
