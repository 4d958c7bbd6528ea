"""The Diffusion Transformer (Peebles & Xie 2023). Knows nothing of runs, sweeps or the command line."""
