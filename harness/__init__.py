"""Run it: the specs, the model, the diffusion, training, sampling, evaluation and dispatch of one study."""
