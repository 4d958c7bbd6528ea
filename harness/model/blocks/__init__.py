"""The blocks of a Diffusion Transformer: `block.py` has the signature, every other file one design."""
