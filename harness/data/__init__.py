"""Data sets, and which sample, noise and timestep come at which step."""
