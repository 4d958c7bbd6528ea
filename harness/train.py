"""Training of one cell: set-up, then one loop with named cadences; exact suspend and resume through `TrainState`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import checkpoint
from harness.cell import Cell, Recording
from harness.data.batches import Batches, Splits, batches
from harness.data.latents import Latents
from harness.data.order import sample_indices, step_draws, stream
from harness.data.sources import Dataset
from harness.diffusion.loss import denoising_mse, hybrid_loss
from harness.diffusion.schedule import Schedule
from harness.errors import NonFiniteLossError
from harness.model.dit import DiT, initialise
from harness.runs import Run, TrainLog

#: Timestep bins of the measured denoising loss, equally wide over 0 .. T-1.
LOSS_BINS = 8

#: At most about this many rows of training loss a run, so that the log stays small enough to commit.
LOG_ROWS = 200


class StoppedError(Exception):
    """The job was asked to stop; everything needed to go on is written."""


@dataclass(frozen=True)
class Hooks:
    """What training and sampling need of the job around them.

    Attributes:
        before_write: raises when this job must not write any more.
        should_stop: true once the job was asked to stop.
        report: told where the work is; called often, so it thins by itself.
    """

    before_write: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False
    report: Callable[[dict[str, Any]], None] = lambda _: None


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


def _resume(state: TrainState, run: Run, latest: int) -> None:
    """Load the newest valid state of at most `latest` steps; a corrupt one is removed and said."""
    for path in run.state_files():
        try:
            tensors, meta = checkpoint.load(path)
        except checkpoint.CorruptCheckpointError as error:
            print(f"removed a corrupt checkpoint, going on from an older one: {error}", flush=True)
            path.unlink(missing_ok=True)
            continue
        if int(meta["step"]) <= latest:
            state.load(tensors, meta)
            print(f"resumed at step {state.step}", flush=True)
            return


def ema_decay(cell: Cell, step: int) -> float:
    """Decay of the averaged weights at `step` (the first is 1).

    Constant as in the paper, or for a window w: 1 - 1/(1 + w*step), an average over about the last share w of the run
    so far, whatever its length (the idea of power-function EMA, Karras et al. 2024, section 3.1).
    """
    window = cell.training.ema_window
    return cell.training.ema_decay if window is None else 1 - 1 / (1 + window * step)


def train(
    cell: Cell,
    source: Dataset | Latents,
    run: Run,
    *,
    device: str,
    keep: list[int],
    recording: Recording,
    checkpoint_seconds: float,
    hooks: Hooks,
) -> None:
    """Train to the end and leave `weights-<step>` for every step of `keep` (the last step among them).

    Args:
        cell: what to train.
        source: its data: images, or their latents.
        run: the run folder; a state in it is resumed.
        device: "cpu" or "cuda".
        keep: steps whose weights are kept for evaluation.
        recording: when the denoising loss is measured.
        checkpoint_seconds: time between states; 0 writes one every step.
        hooks: see `Hooks`.

    Raises:
        NonFiniteLossError: the loss became non-finite; the step is named.
        StoppedError: asked to stop; the state is written.
    """
    recipe = cell.training
    state = TrainState.initial(cell, device)
    wanted = [step for step in keep if not run.weights_file(step).exists()]
    hooks.before_write()
    _resume(state, run, latest=min(wanted, default=recipe.steps))
    log = TrainLog(run).rewind(state.step)
    schedule = Schedule.of(cell.diffusion)
    data = batches(source, device)
    loss_steps = recording.steps(recipe.steps, keep)
    log_every = max(1, recipe.steps // LOG_ROWS)
    last_checkpoint = begun = time.monotonic()
    earlier = state.seconds
    state.dit.train()

    while state.step < recipe.steps:
        loss = _train_step(state, cell, data.train, schedule, device)
        state.window.append(loss)
        state.step += 1
        moment = time.monotonic()
        state.seconds = earlier + moment - begun
        last = state.step == recipe.steps

        if state.step % log_every == 0 or last:
            hooks.before_write()
            log.append({"step": state.step, "loss": sum(state.window) / len(state.window), "seconds": state.seconds})
            state.window = []
        if state.step in loss_steps:
            hooks.before_write()
            log.append({"step": state.step, **measure_losses(state.ema, cell, data, recording.loss_images, device)})
        if state.step in keep:
            hooks.before_write()
            checkpoint.save(run.weights_file(state.step), state.weights(), {"step": state.step, "cell": cell.id})
        if not last and moment - last_checkpoint >= checkpoint_seconds:
            hooks.before_write()
            state.save(run)
            last_checkpoint = time.monotonic()
        if not last and hooks.should_stop():
            hooks.before_write()
            state.save(run)
            raise StoppedError(f"stopped at step {state.step} of {recipe.steps}; the next launch goes on from there")
        hooks.report(
            {
                "stage": "train",
                "done": state.step,
                "total": recipe.steps,
                "loss": loss,
                "images_per_s": state.step * recipe.batch_size / state.seconds if state.seconds else None,
            }
        )

    for path in run.state_files():  # the kept weights are all that is needed from here on
        path.unlink(missing_ok=True)


def _train_step(state: TrainState, cell: Cell, data: Batches, schedule: Schedule, device: str) -> float:
    """One step of AdamW and of the averaged weights; returns the loss."""
    recipe, shape = cell.training, cell.data.shape
    indices = sample_indices(cell.seed, state.step, recipe.batch_size, len(data.labels))
    draws = step_draws(
        cell.seed,
        state.step,
        (recipe.batch_size, shape.channels, shape.size, shape.size),
        cell.diffusion.timesteps,
        recipe.label_dropout,
    )
    mirror = draws.flip if cell.data.horizontal_flips else None
    x0 = data.x0(indices, mirror, stream("posterior", cell.seed, state.step))  # (N, C, S, S)
    y = None
    if shape.classes:
        labels = data.labels[torch.from_numpy(indices).to(device)]
        y = labels.masked_fill(torch.from_numpy(draws.drop_label).to(device), state.dit.null_class)
    t = torch.from_numpy(draws.timesteps).to(device)
    noise = torch.from_numpy(draws.noise).to(device)
    xt = schedule.q_sample(x0, t, noise)
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        output = state.dit(xt, t, y)
    losses = hybrid_loss(output.float(), x0, xt, t, noise, schedule)
    loss = (losses.mse + losses.vb).mean()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss became {value} at step {state.step + 1} (learning_rate {recipe.learning_rate}, "
            f"precision {recipe.precision}); the weights before it are the last checkpoint's"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    decay = ema_decay(cell, state.step + 1)
    torch._foreach_lerp_(list(state.ema.parameters()), [p.detach() for p in state.dit.parameters()], 1 - decay)
    return value


@torch.inference_mode()
def measure_losses(dit: DiT, cell: Cell, data: Splits, count: int, device: str) -> dict[str, Any]:
    """Denoising loss (noise MSE) per timestep bin on both splits, the same noise for every cell.

    Returns:
        `loss_train` and `loss_heldout` (means over the bins) and `bins_train`, `bins_heldout` (LOSS_BINS values each,
        from the cleanest bin to the noisiest).
    """
    schedule = Schedule.of(cell.diffusion)
    out: dict[str, Any] = {}
    for name, split in data._asdict().items():
        bins = [_bin_loss(dit, cell, split, count, schedule, b, device) for b in range(LOSS_BINS)]
        out[f"loss_{name}"] = sum(bins) / len(bins)
        out[f"bins_{name}"] = bins
    return out


def _bin_loss(dit: DiT, cell: Cell, split: Batches, count: int, schedule: Schedule, number: int, device: str) -> float:
    n = min(count, len(split.labels))
    low, high = (round(edge * cell.diffusion.timesteps / LOSS_BINS) for edge in (number, number + 1))
    draws = stream("denoising-loss", number)  # the same for both splits, so that their gap is not the noise's
    t = torch.from_numpy(draws.integers(low, high, size=n)).to(device)
    x0 = split.x0(np.arange(n), None, stream("denoising-loss-posterior", number))
    noise = torch.from_numpy(draws.standard_normal(tuple(x0.shape), dtype=np.float32)).to(device)
    y = split.labels[:n] if cell.data.shape.classes else None
    return float(denoising_mse(dit(schedule.q_sample(x0, t, noise), t, y), noise).mean())
