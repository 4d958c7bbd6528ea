"""`make bench`: what costs how much, as ratios of one run. Decides no test, for machines are shared and noisy."""
