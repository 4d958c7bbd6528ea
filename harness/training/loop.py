"""Training of one cell: set-up, then one loop. A resumed training gives the same bits, through `TrainState`.

The loop is the same on one rank and on several (see `harness.training.ranks`): every rank draws its own share of the
global batch and works on it; the first rank writes. Between two looks (see `_Looks`) nothing is read back from the
device, written, or said to the other ranks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.batches import Batches, Splits, batches
from harness.data.dataset import LoadedData
from harness.data.draws import DRAWS
from harness.data.latents import Latents
from harness.diffusion.objective import build
from harness.errors import CellFailedError, NonFiniteError, non_finite_in
from harness.runs.layout import belongs, meta_of, step_of
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.resources import Compilation, Recording
from harness.spec.training import Training
from harness.training import checkpoint
from harness.training.feed import Feed
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.losses import measure_losses
from harness.training.meter import Meter, Reading, together
from harness.training.passes import losses_backward, make_ready
from harness.training.precision import products
from harness.training.ranks import Ranks
from harness.training.saving import Checkpoints, after_step
from harness.training.state import TrainState, Window, ema_decay

_LOG = logging.getLogger(__name__)

#: About the most rows of training loss per run, so that the log is small enough to commit.
LOG_ROWS = 200

#: Longest time that rows of the log wait to be written together.
LOG_SECONDS = 1.0

#: See `Options.look_seconds`.
LOOK_SECONDS = 0.25

#: Most steps between two looks.
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Options:
    """What a training runs on and what it writes; none of it is part of the cell.

    Attributes:
        device: "cpu" or "cuda".
        keep: steps whose weights are kept for evaluation, the last step among them.
        recording: when the denoising loss is measured.
        checkpoint_seconds: time between saved states, see `harness.training.cadence`.
        micro_batch: images that a rank passes at once; their gradients add up. None: its whole share.
        look_seconds: about the time between two looks at the losses and at the stop flag; 0: a look after every step.
        anew: whether what was begun with other random draws is removed and trained anew; otherwise it is refused.
        compiled: how the network is compiled.
        recompute: whether activations inside its regions are computed again in the backward pass, not kept.
    """

    device: str
    keep: list[int]
    recording: Recording
    checkpoint_seconds: float | None
    micro_batch: int | None = None
    look_seconds: float = LOOK_SECONDS
    anew: bool = False
    compiled: Compilation = "off"
    recompute: bool = False


def train(
    cell: Cell, source: LoadedData | Latents, run: Run, options: Options, hooks: Hooks, ranks: Ranks | None = None
) -> None:
    """Train to the end and leave `weights-<step>` for every step of `options.keep`.

    Args:
        cell: what to train.
        source: its data: images, or their latents.
        run: the run folder; a state in it is resumed.
        options: see `Options`.
        hooks: see `Hooks`.
        ranks: the ranks that share the work; each of them calls this. None: this process alone.

    Raises:
        NonFiniteError: the loss, a measured loss, the weights or the state became non-finite; the step is named.
        StoppedError: any rank was asked to stop; the state is written.
    """
    recipe, ranks = cell.training, ranks or Ranks()
    state = TrainState.initial(cell, options.device)
    ranks.on_first(lambda: _require_same_draws(run, cell, options.anew, hooks))
    if (found := ranks.load_on_first(lambda: _newest_state(run, cell, options.keep, hooks))) is not None:
        state.load(found)
    data = batches(source, options.device)
    log = _Log(state, cell, run, hooks, options, data)
    checkpoints = Checkpoints(state, cell, run, hooks, options.keep, options.checkpoint_seconds, log.flush)
    if ranks.is_first:
        log.go_on()
    begun, earlier = time.monotonic(), state.seconds
    state.network.train()
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(log),
        contextlib.closing(Trainer(state, cell, data.train, options, ranks)) as trainer,
    ):
        looks = _Looks(options, state.step, {*log.steps, *log.measured_at, recipe.steps})
        while state.step < recipe.steps:
            trainer.step()
            if not looks.is_due(state.step):
                continue
            state.seconds = earlier + time.monotonic() - begun
            readings = ranks.exchange(trainer.meter.read())
            loss = together(readings)
            if loss.odd_step:  # all ranks see it, so all of them fail
                raise _not_finite(loss, recipe)
            state.window = Window([reading.total for reading in readings], loss.steps)
            if ranks.is_first:
                with non_finite_in(after_step(cell, state.step)):
                    log.after_step(loss)
                checkpoints.after_step()
            if state.step in log.steps:
                trainer.meter.set(0.0, 0)
            # here the other ranks wait while the first one measures
            if ranks.any_rank(hooks.should_stop()) and state.step < recipe.steps:
                if ranks.is_first:
                    checkpoints.save_state()
                ranks.barrier()  # nobody leaves before the state is written
                raise StoppedError(
                    f"stopped at step {state.step} of {recipe.steps}; the next launch goes on from there"
                )
            looks.plan(state.step, ranks)
            speed = state.step * recipe.batch_size / state.seconds if state.seconds else None
            done: Report = {"stage": "train", "done": state.step, "total": recipe.steps, "images_per_s": speed}
            hooks.report(done if loss.mean is None else {**done, "loss": loss.mean})
        log.flush()
        checkpoints.wait()

    if ranks.is_first:
        with hooks.writing():
            for path in run.state_files():  # from here on only the kept weights are needed
                path.unlink(missing_ok=True)


def _require_same_draws(run: Run, cell: Cell, anew: bool, hooks: Hooks) -> None:
    """Check that what was trained so far had the random draws of this version; remove it where it is to be done anew.

    Raises:
        CellFailedError: it had not.
    """
    metas = {path: meta_of(path) for path in (*run.state_files(), *run.weights_files())}
    mine = {path: meta for path, meta in metas.items() if meta and belongs(meta, cell.id, step_of(path))}
    odd = {path: meta.get("draws", 1) for path, meta in mine.items() if meta.get("draws", 1) != DRAWS}
    for path, version in odd.items():
        said = f"{path.name} was trained with random draws of version {version}, and this harness draws version {DRAWS}"
        if not anew:
            raise CellFailedError(f"{said}; launch again with --retry, which trains the cell anew")
        _LOG.warning("removed, to train anew: %s", said)
        with hooks.writing():
            path.unlink(missing_ok=True)


def _newest_state(run: Run, cell: Cell, keep: list[int], hooks: Hooks) -> checkpoint.Loaded | None:
    """The cell's newest whole state that is not past any step of `keep` whose weights are missing."""
    latest = min((step for step in keep if not run.has_weights(step)), default=cell.training.steps)

    def is_wanted(path: Path, meta: dict[str, Any]) -> bool:
        return belongs(meta, cell.id, step_of(path)) and step_of(path) <= latest

    with hooks.writing():  # it removes corrupt states
        found = checkpoint.newest(run.state_files(), is_wanted)
    if found is not None:
        _LOG.info("resumed at step %s", found.meta["step"])
    return found


class _Looks:
    """When the loop looks at its losses, its clock and its stop flag: at the steps that write, and by the clock.

    All ranks look at the same steps, for they meet there.
    """

    def __init__(self, options: Options, step: int, fixed: Set[int]) -> None:
        self._seconds = min(
            options.look_seconds, math.inf if options.checkpoint_seconds is None else options.checkpoint_seconds
        )
        self._fixed, self._next = fixed, step + 1
        self._at, self._looked = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to look after this step."""
        return step >= self._next or step in self._fixed

    def plan(self, step: int, ranks: Ranks) -> None:
        """Set the next look, by the speed of the first rank since the last one."""
        now = time.monotonic()
        per_second = (step - self._at) / max(now - self._looked, 1e-6)
        self._next = step + max(1, ranks.on_first(lambda: min(int(per_second * self._seconds), _MOST_STEPS)))
        self._at, self._looked = step, now


def _not_finite(loss: Reading, recipe: Training) -> NonFiniteError:
    return NonFiniteError(
        f"the loss became {loss.odd_loss} at step {loss.odd_step}, that of {loss.odd_images} of {recipe.batch_size} "
        f"images (learning_rate {recipe.learning_rate}, precision {recipe.precision}); the weights before it are the "
        "last checkpoint's"
    )


class _Log:
    """Writes the losses to `train.jsonl`: means of the training loss, and the denoising loss at chosen steps.

    Rows wait up to `LOG_SECONDS` for each other. Before every checkpoint, and at the end, all are written.
    """

    def __init__(self, state: TrainState, cell: Cell, run: Run, hooks: Hooks, options: Options, data: Splits) -> None:
        self._state, self._cell, self._data, self._hooks = state, cell, data, hooks
        self._images = options.recording.loss_images
        every = max(1, cell.training.steps // LOG_ROWS)
        self._file, self._waiting = TrainLog(run), list[dict[str, Any]]()
        self._flushed = time.monotonic()
        #: The steps that get a row of denoising losses, those whose weights are kept among them.
        self.measured_at = options.recording.steps(cell.training.steps, options.keep)
        #: The steps that get a row of training loss.
        self.steps = {*range(every, cell.training.steps, every), cell.training.steps}

    def go_on(self) -> None:
        """Write the log as it was when the state was written."""
        with self._hooks.writing():
            self._file.rewrite(self._state.rows)

    def after_step(self, loss: Reading) -> None:
        """Add the rows that are due.

        Raises:
            NonFiniteError: what is kept or measured at this step is not finite.
        """
        state = self._state
        if state.step in self.measured_at:
            _require_finite(state)
        if state.step in self.steps:
            recipe = self._cell.training
            rate = {"learning_rate": recipe.rate_at(state.step)} if recipe.rate_varies else {}
            self._add({"loss": loss.mean, "seconds": state.seconds, **rate})
            state.window = Window([], 0)
        if state.step in self.measured_at:
            self._add(measure_losses(state.ema, self._cell, self._data, self._images))
        if time.monotonic() - self._flushed >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        self._flushed = time.monotonic()
        if self._waiting:
            with self._hooks.writing():
                self._file.append(*self._waiting)
            self._waiting.clear()

    def close(self) -> None:
        """Write the rows that wait, unless the job must not write any more."""
        with contextlib.suppress(Exception):  # what ends the training is said already
            self.flush()

    def _add(self, values: Mapping[str, Any]) -> None:
        row = {"step": self._state.step, **values}
        self._state.rows.append(row)
        self._waiting.append(row)


def _require_finite(state: TrainState) -> None:
    """Check that weights are finite; tell of moments that are not.

    Raises:
        NonFiniteError: they are not.
    """
    tensors = state.tensors()
    with non_finite_in("the state of the training"):
        checkpoint.require_finite(tensors)
    if found := checkpoint.overflown(tensors):
        note = "note: step %s: %s moments of the optimiser are infinite, for example %s: weights stay as they are"
        _LOG.warning(note, state.step, len(found), found[0])


class Trainer:
    """Makes the steps of a training.

    Args:
        state: what the steps change.
        cell: the recipe, the objective and the seed.
        data: the train split.
        options: device and micro-batch.
        ranks: the ranks that share the work.
    """

    def __init__(self, state: TrainState, cell: Cell, data: Batches, options: Options, ranks: Ranks) -> None:
        self._state, self._cell, self._ranks = state, cell, ranks
        self._micro_batch, self._device = options.micro_batch, options.device
        self._objective = build(cell.diffusion)
        make_ready(state.network, compiled=options.compiled, recompute=options.recompute)
        self._model = self._averaging()
        self.feed = Feed(cell, data, self._objective, ranks.share(cell.training.batch_size), options.device)
        self.meter = Meter(options.device)
        self.meter.set(state.window.of(ranks.rank, ranks.world), state.window.steps)

    def step(self) -> None:
        """One step of AdamW and of the averaged weights; its loss goes to the meter, and nothing is read back.

        Also a loss that is not finite changes the weights: ask the meter before they are kept.
        """
        cell, state, ranks = self._cell, self._state, self._ranks
        inputs, precision = self.feed(state.step), cell.training.precision
        count = len(inputs.x0)
        size = count if self._micro_batch is None else self._micro_batch
        passed: list[Tensor] = []  # losses, each weighted by its share of the images
        each: list[Tensor] = []  # losses of images
        state.optimizer.zero_grad()
        with products(precision):
            for first in range(0, count, size):
                part, last = slice(first, first + size), first + size >= count
                with nullcontext() if last else ranks.without_averaging(self._model):
                    loss, losses = losses_backward(self._model, self._objective, inputs, part, precision)
                passed.append(loss)
                each.append(losses)
        if cell.training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(state.network.parameters(), cell.training.gradient_clip, foreach=True)
        state.optimizer.lr = cell.training.rate_at(state.step + 1)
        state.optimizer.step()
        state.step += 1
        state.average(ema_decay(cell, state.step))
        self.meter.add(state.step, torch.stack(passed).sum(), torch.cat(each))

    def close(self) -> None:
        """Make no inputs any more."""
        self.feed.close()

    def _averaging(self) -> nn.Module:
        """The network as the ranks train it together.

        DistributedDataParallel sorts the gradients into its buffers after the first backward pass, and the order of its
        sums depends on them. So one pass is thrown away here, and all steps sum in the same order. Without it, three
        ranks that were interrupted would end with other bits than three that were not.
        """
        network = self._state.network
        model = self._ranks.averaging(network)
        if model is not network:
            shape = self._cell.data.shape
            x = torch.zeros(1, shape.channels, shape.size, shape.size, device=self._device)
            zero = torch.zeros(1, dtype=torch.int64, device=self._device)
            model(x, zero, zero if shape.classes else None).float().mean().backward()
            self._state.optimizer.zero_grad()
        return model
