"""Feature extractors, Fréchet distance and metrics of generated images."""
