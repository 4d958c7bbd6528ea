"""The state of a training: weights, averaged weights, optimiser."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.model.dit import DiT, initialise
from harness.runs.layout import Run
from harness.spec.cell import Cell
from harness.training import checkpoint


@dataclass
class TrainState:
    """Everything that changes while training: a checkpoint holds it, and a resumed run goes on bit for bit."""

    dit: DiT
    ema: DiT
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    window: list[float] = field(default_factory=list)  # losses since the last logged row

    @classmethod
    def initial(cls, cell: Cell, device: str) -> TrainState:
        """Weights as the cell's seed draws them; the average starts from them."""
        dit = DiT(cell.model, cell.data.shape)
        initialise(dit, cell.seed)
        dit.to(device)
        ema = copy.deepcopy(dit).requires_grad_(False)
        optimizer = torch.optim.AdamW(
            dit.parameters(),
            lr=cell.training.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=cell.training.weight_decay,
            fused=True,
        )
        return cls(dit, ema, optimizer)

    def weights(self) -> dict[str, Tensor]:
        """Weights and averaged weights, by name."""
        return {
            **{f"model.{name}": p for name, p in self.dit.state_dict().items()},
            **{f"ema.{name}": p for name, p in self.ema.state_dict().items()},
        }

    def save(self, run: Run) -> None:
        """Write the full state, then drop all but the two newest (the older one is the spare)."""
        tensors = self.weights()
        for name, parameter in self.dit.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        meta = {"step": self.step, "seconds": self.seconds, "window": self.window}
        checkpoint.save(run.state_file(self.step), tensors, meta)
        for old in run.state_files()[2:]:
            old.unlink(missing_ok=True)

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.dit.load_state_dict(_part(tensors, "model."))
        self.ema.load_state_dict(_part(tensors, "ema."))
        for name, parameter in self.dit.named_parameters():
            saved = _part(tensors, f"optimizer.{name}.")
            self.optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device) for key, value in saved.items()
            }
        self.step, self.seconds, self.window = int(meta["step"]), float(meta["seconds"]), list(meta["window"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def ema_decay(cell: Cell, step: int) -> float:
    """Decay of the averaged weights at `step` (the first is 1).

    Constant as in the paper, or for a window w: 1 - 1/(1 + w*step), an average over about the last share w of the run
    so far, whatever its length (the idea of power-function EMA, Karras et al. 2024, section 3.1).
    """
    window = cell.training.ema_window
    return cell.training.ema_decay if window is None else 1 - 1 / (1 + window * step)
