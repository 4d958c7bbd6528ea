"""One forward and backward pass, and how the parts of a network are made ready for it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from harness.diffusion.objective import Objective
from harness.model.network import Network
from harness.spec.resources import Compilation
from harness.spec.training import Precision
from harness.training.feed import Inputs
from harness.training.precision import autocast


def make_ready(network: Network, *, compiled: Compilation, recompute: bool) -> None:
    """Let a network compile itself, and keep no activations inside its regions (see `Network.regions`).

    What is not kept is computed again in the backward pass, by the same code: the gradients are the same, bit for bit,
    as those of a network that is compiled part by part. As one graph it is not compiled then.
    The names of the weights stay.
    """
    if not recompute:
        if compiled == "on":
            network.compile_regions()
        elif compiled == "whole":
            network.compile(dynamic=False)
        return
    from torch.utils.checkpoint import checkpoint  # only here

    for region in network.regions():
        forward = torch.compile(region.forward, dynamic=False) if compiled != "off" else region.forward
        # the networks have no random state, see `Network`
        region.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def losses_backward(
    model: nn.Module, objective: Objective, inputs: Inputs, part: slice, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Add the gradients of some images of a share; each image counts as much as any other of the share.

    Args:
        model: the network, or what averages its gradients.
        objective: the loss.
        inputs: the share.
        part: which of its images.
        precision: of the network's arithmetic.

    Returns:
        The part's summand of the share's loss, a scalar, and the losses of its images, (n,), on the device.
    """
    x0, y, t, noise = inputs
    xt = objective.noised(x0[part], t[part], noise[part])
    with autocast(precision, x0.device.type):
        output = model(xt, t[part], None if y is None else y[part])
    losses = objective.loss(output, x0[part], xt, t[part], noise[part])
    loss = losses.mean() * (len(losses) / len(x0))
    loss.backward()
    return loss.detach(), losses.detach()
