"""The state of a training: network, optimiser and step; for a cell, the averaged weights too."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.data.draws import DRAWS
from harness.model.network import Network, build
from harness.spec.cell import Cell
from harness.training import checkpoint
from harness.training.adamw import AdamW


@dataclass
class State:
    """Everything that changes during training. A checkpoint holds it all, so a resumed run gives the same bits."""

    network: Any  # an nn.Module; diffusers' have no types
    optimizer: AdamW
    owner: str  # id of the cell, or of the autoencoder
    step: int = 0
    seconds: float = 0.0

    def weights(self) -> dict[str, Tensor]:
        """Weights by name."""
        return {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}

    def meta(self) -> dict[str, Any]:
        """What is saved beside the tensors."""
        return {"cell": self.owner, "step": self.step, "seconds": self.seconds}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and the optimiser's moments, by name."""
        tensors = self.weights()
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{checkpoint.OPTIMIZER}{name}.{key}"] = value
        return tensors

    def save(self, path: Path) -> None:
        """Write the full state.

        Raises:
            NonFiniteError: weights are not finite.
        """
        checkpoint.save(path, self.tensors(), self.meta())

    def load(self, saved: checkpoint.Loaded) -> None:
        """Take over a saved state."""
        self.network.load_state_dict(checkpoint.part(saved.tensors, "model."))
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device)
                for key, value in checkpoint.part(saved.tensors, f"optimizer.{name}.").items()
            }
        self.step, self.seconds = int(saved.meta["step"]), float(saved.meta["seconds"])


class Window(NamedTuple):
    """The training loss since the last row of the log.

    Attributes:
        sums: of each rank, the sum of its losses.
        steps: how many steps were summed.
    """

    sums: list[float]
    steps: int

    def of(self, rank: int, world: int) -> float:
        """The sum from which a rank goes on; the mean of all, where there were other ranks."""
        if not self.sums:
            return 0.0
        return self.sums[rank] if len(self.sums) == world else sum(self.sums) / len(self.sums)


@dataclass(kw_only=True)
class TrainState(State):
    """The state of a cell's training."""

    network: Network
    ema: Network
    window: Window = field(default_factory=lambda: Window([], 0))
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the log, so that a resume can write it anew
    averaged: tuple[list[Tensor], list[Tensor]] = field(init=False)  # parameters of `ema` and of `network`

    def __post_init__(self) -> None:
        """Find the parameters once, not at every step."""
        self.averaged = list(self.ema.parameters()), list(self.network.parameters())

    @classmethod
    def initial(cls, cell: Cell, device: str) -> TrainState:
        """Weights as the cell's seed of initialisation draws them; the average starts from them."""
        network = build(cell.model, cell.data.shape, cell.diffusion.outputs)
        network.initialise(cell.drawn.initialisation)
        network.to(device)
        recipe = cell.training
        optimizer = AdamW(
            network.parameters(), lr=recipe.learning_rate, beta2=recipe.beta2, weight_decay=recipe.weight_decay
        )
        ema = copy.deepcopy(network).requires_grad_(False)
        return cls(network=network, ema=ema, optimizer=optimizer, owner=cell.id)

    def weights(self) -> dict[str, Tensor]:
        """Weights and averaged weights, by name."""
        return super().weights() | {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}

    def meta(self) -> dict[str, Any]:
        """See `State`."""
        return {**super().meta(), "window": list(self.window), "rows": list(self.rows), "draws": DRAWS}

    def load(self, saved: checkpoint.Loaded) -> None:
        """See `State`."""
        super().load(saved)
        self.ema.load_state_dict(checkpoint.part(saved.tensors, "ema."))
        self.window = Window(*saved.meta["window"])
        self.rows = list(saved.meta["rows"])

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the averaged weights towards the weights: decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(*self.averaged, 1 - decay)


def ema_decay(cell: Cell, step: int) -> float:
    """Decay of the averaged weights at `step` (the first is 1).

    Constant as in the paper. Or, for a window w, 1 - 1/(1 + w*step): an average over about the last share w of the
    steps so far (the idea of power-function EMA, Karras et al. 2024, section 3.1).
    """
    window = cell.training.ema_window
    return cell.training.ema_decay if window is None else 1 - 1 / (1 + window * step)
