"""Data sets, latents and autoencoders, and the random draws of training and sampling."""
