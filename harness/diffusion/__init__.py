"""Forward process, hybrid loss and samplers. Knows nothing of runs, sweeps or the command line."""
