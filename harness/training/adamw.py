"""AdamW by torch's function of that name. torch's class imports the compiler, 1.7 s of a job that compiles nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); the same bits as `torch.optim.AdamW(fused=True)`.

    Args:
        parameters: what it changes; those without a gradient stay as they are.
        lr: the learning rate; may be set anew between steps.
        beta2: decay of the second moments.
        weight_decay: see the paper, algorithm 2.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, beta2: float = 0.999, weight_decay: float = 0.0
    ) -> None:
        self.lr, self._beta2, self._weight_decay = lr, beta2, weight_decay
        self._parameters = list(parameters)
        #: Of each parameter that was changed: "step", a scalar, and the moments "exp_avg" and "exp_avg_sq".
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        changed = [parameter for parameter in self._parameters if parameter.grad is not None]
        for parameter in changed:
            if not self.state[parameter]:
                step = torch.zeros((), device=parameter.device)  # where the kernel reads it
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": step, **moments}
        states = [self.state[parameter] for parameter in changed]
        adamw(
            list[Tensor](changed),
            [parameter.grad for parameter in changed if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=self._beta2,
            lr=self.lr,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )
