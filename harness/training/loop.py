"""Training of one cell: set-up, then one loop with named cadences; exact suspend and resume through `TrainState`.

The loop is the same on one rank and on several (see `harness.training.ranks`): every rank draws the whole global batch
and works on its slice of it, and the first one writes.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.batches import Batches, Splits, batches
from harness.data.dataset import Dataset
from harness.data.draws import sample_indices, step_draws, stream
from harness.data.latents import Latents
from harness.diffusion.ddpm import hybrid_loss
from harness.diffusion.schedule import Schedule
from harness.errors import NonFiniteLossError
from harness.runs.layout import Run
from harness.runs.log import TrainLog
from harness.spec.cell import Cell
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from harness.training.losses import measure_losses
from harness.training.ranks import Ranks
from harness.training.state import TrainState, ema_decay

#: At most about this many rows of training loss a run, so that the log stays small enough to commit.
LOG_ROWS = 200


def _newest_state(run: Run, latest: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest valid state of at most `latest` steps; a corrupt one is removed and said."""
    for path in run.state_files():
        try:
            tensors, meta = checkpoint.load(path)
        except checkpoint.CorruptCheckpointError as error:
            print(f"removed a corrupt checkpoint, going on from an older one: {error}", flush=True)
            path.unlink(missing_ok=True)
            continue
        if int(meta["step"]) <= latest:
            print(f"resumed at step {meta['step']}", flush=True)
            return tensors, meta
    return None


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
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
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
        micro_batch: images of a rank that pass at once, their gradients added up; None: its whole share.
        ranks: who shares the work; every one of them calls this. None: nobody.

    Raises:
        NonFiniteLossError: the loss became non-finite; the step is named.
        StoppedError: any rank was asked to stop; the state is written.
    """
    recipe, ranks = cell.training, ranks or Ranks()
    state = TrainState.initial(cell, device)
    hooks.before_write()

    def newest() -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        wanted = [step for step in keep if not run.weights_file(step).exists()]
        return _newest_state(run, latest=min(wanted, default=recipe.steps))

    if (found := ranks.load(newest)) is not None:
        state.load(*found)
    schedule = Schedule.of(cell.diffusion)
    data = batches(source, device)
    books = _Books(state, cell, run, data, hooks, keep, recording, checkpoint_seconds, device) if ranks.leads else None
    begun, earlier = time.monotonic(), state.seconds
    state.dit.train()
    model = _averaging(state, cell, device, ranks)

    while state.step < recipe.steps:
        loss = _train_step(state, cell, data.train, schedule, device, model, micro_batch, ranks)
        state.step += 1
        state.seconds = earlier + time.monotonic() - begun
        if books is not None:
            books.after_step(loss)
        # here the other ranks wait while the first one writes
        if ranks.any(hooks.should_stop()) and state.step < recipe.steps:
            if books is not None:
                books.save()
            ranks.any(False)  # nobody leaves before it is written
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

    if ranks.leads:
        for path in run.state_files():  # the kept weights are all that is needed from here on
            path.unlink(missing_ok=True)


class _Books:
    """What training writes, each at its own cadence; on one rank only."""

    def __init__(
        self,
        state: TrainState,
        cell: Cell,
        run: Run,
        data: Splits,
        hooks: Hooks,
        keep: list[int],
        recording: Recording,
        checkpoint_seconds: float,
        device: str,
    ) -> None:
        self._state, self._cell, self._run, self._data, self._hooks = state, cell, run, data, hooks
        self._keep, self._images, self._device = keep, recording.loss_images, device
        self._loss_steps = recording.steps(cell.training.steps, keep)
        self._log = TrainLog(run).rewind(state.step)
        self._log_every = max(1, cell.training.steps // LOG_ROWS)
        self._checkpoint_seconds, self._saved_at = checkpoint_seconds, time.monotonic()

    def after_step(self, loss: float) -> None:
        """Write what is due."""
        state, run = self._state, self._run
        moment, last = time.monotonic(), state.step == self._cell.training.steps
        state.window.append(loss)
        if state.step % self._log_every == 0 or last:
            self._hooks.before_write()
            mean = sum(state.window) / len(state.window)
            self._log.append({"step": state.step, "loss": mean, "seconds": state.seconds})
            state.window = []
        if state.step in self._loss_steps:
            self._hooks.before_write()
            losses = measure_losses(state.ema, self._cell, self._data, self._images, self._device)
            self._log.append({"step": state.step, **losses})
        if state.step in self._keep:
            self._hooks.before_write()
            checkpoint.save(run.weights_file(state.step), state.weights(), {"step": state.step, "cell": self._cell.id})
        if not last and moment - self._saved_at >= self._checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write the full state."""
        self._hooks.before_write()
        self._state.save(self._run)
        self._saved_at = time.monotonic()


def _averaging(state: TrainState, cell: Cell, device: str, ranks: Ranks) -> nn.Module:
    """The model as the ranks train it together.

    DistributedDataParallel sorts the gradients into its buffers after the first backward pass, and the order of its
    sums depends on them. So one pass is thrown away here, and every step sums alike, the first after a resume too
    (without it, three ranks that were interrupted end with other bits than three that were not).
    """
    model = ranks.averaging(state.dit)
    if model is not state.dit:
        shape = cell.data.shape
        x = torch.zeros(1, shape.channels, shape.size, shape.size, device=device)
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        model(x, zero, zero if shape.classes else None).float().mean().backward()
        state.optimizer.zero_grad(set_to_none=True)
    return model


def _train_step(
    state: TrainState,
    cell: Cell,
    data: Batches,
    schedule: Schedule,
    device: str,
    model: nn.Module | None = None,
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
) -> float:
    """One step of AdamW and of the averaged weights; returns the loss, over the global batch on every rank."""
    recipe, shape, ranks = cell.training, cell.data.shape, ranks or Ranks()
    indices = sample_indices(cell.seed, state.step, recipe.batch_size, len(data.labels))
    draws = step_draws(
        cell.seed,
        state.step,
        (recipe.batch_size, shape.channels, shape.size, shape.size),
        cell.diffusion.timesteps,
        recipe.label_dropout,
    )
    mine = ranks.share(recipe.batch_size)
    mirror = draws.flip if cell.data.horizontal_flips else None
    x0 = data.x0(indices, mirror, stream("posterior", cell.seed, state.step), mine)  # (n, C, S, S)
    y = None
    if shape.classes:
        labels = data.labels[torch.from_numpy(indices[mine]).to(device)]
        y = labels.masked_fill(torch.from_numpy(draws.drop_label[mine]).to(device), state.dit.null_class)
    t = torch.from_numpy(draws.timesteps[mine]).to(device)
    noise = torch.from_numpy(draws.noise[mine]).to(device)
    xt = schedule.q_sample(x0, t, noise)

    model = state.dit if model is None else model
    size = len(x0) if micro_batch is None else micro_batch
    passed: list[Tensor] = []  # losses, each weighted by its share of the images
    value = math.nan
    state.optimizer.zero_grad(set_to_none=True)
    for first in range(0, len(x0), size):
        part, last = slice(first, first + size), first + size >= len(x0)
        with nullcontext() if last else ranks.apart(model):
            with torch.autocast(x0.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                output = model(xt[part], t[part], None if y is None else y[part])
            losses = hybrid_loss(output.float(), x0[part], xt[part], t[part], noise[part], schedule)
            loss = (losses.mse + losses.vb).mean() * (len(losses.mse) / len(x0))
            passed.append(loss.detach())
            if last:
                value = _finite(ranks.mean(float(torch.stack(passed).sum())), state.step + 1, cell)
            loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    decay = ema_decay(cell, state.step + 1)
    torch._foreach_lerp_(list(state.ema.parameters()), [p.detach() for p in state.dit.parameters()], 1 - decay)
    return value


def _finite(loss: float, step: int, cell: Cell) -> float:
    """The loss; all ranks see the same one, so all of them stop at the same step.

    Raises:
        NonFiniteLossError: it is not finite.
    """
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss became {loss} at step {step} (learning_rate {cell.training.learning_rate}, "
            f"precision {cell.training.precision}); the weights before it are the last checkpoint's"
        )
    return loss
