"""Training: exact resume, the averaged weights, the recorded losses, and a loss that explodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.batches import batches
from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.errors import CellFailedError, NonFiniteError
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.runs.triage import describe
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.diffusion import Flow
from harness.spec.model import UNetSpec
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.adamw import AdamW
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.loop import Options, train
from harness.training.losses import measure_losses
from harness.training.state import TrainState, ema_decay

torch.set_num_threads(1)

UNET = UNetSpec(network="unet", channels=(4, 8), blocks=1, attention=(1,), norm_groups=4)


def cell(**training: Any) -> Cell:
    recipe = {"steps": 12, "batch_size": 8, "learning_rate": 1e-3, "ema_window": 0.2, **training}
    return Cell.model_validate({"model": {"depth": 2, "width": 16, "patch_size": 4}, "training": recipe})


@pytest.fixture(scope="module")
def dataset() -> LoadedData:
    return load(Data())


def go(c: Cell, run: Run, dataset: LoadedData, stop_at: int | None = None, keep: list[int] | None = None) -> None:
    seen = {"step": 0}

    def report(value: Report) -> None:
        seen["step"] = value["done"]

    # the report of a step comes after the question whether to stop: a stop "at 5" is asked for during step 6
    hooks = Hooks(should_stop=lambda: stop_at is not None and seen["step"] + 1 >= stop_at, report=report)
    train(
        c,
        dataset,
        run,
        Options("cpu", keep or [c.training.steps], Recording(loss_steps=(3,), loss_images=16), 1e9, look_seconds=0),
        hooks,
    )


def log_without_time(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in TrainLog(run).rows()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: cell(),
        lambda: cell(precision="bf16"),
        lambda: cell(ema_window=None, ema_decay=0.5, weight_decay=0.1),
        lambda: cell(schedule="cosine", warmup_steps=3, gradient_clip=0.1, beta2=0.95),
        lambda: cell().model_copy(update={"data": Data(labels=False, horizontal_flips=True), "seed": 3}),
        lambda: cell().model_copy(update={"diffusion": Flow(objective="flow", time_distribution="logit-normal")}),
        lambda: cell(precision="bf16").model_copy(update={"model": UNET}),
    ],
    ids=["plain", "bf16", "constant-ema", "schedule-and-clip", "unconditional-flips", "flow", "unet"],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, dataset: LoadedData, make: Callable[[], Cell]
) -> None:
    c = make()
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")
    for run in (whole, broken):
        run.folder.mkdir()
    go(c, whole, dataset, keep=[6, 12])
    for stop_at in (1, 5, 8, 11):
        with pytest.raises(StoppedError, match=f"step {stop_at} of 12"):
            go(c, broken, dataset, stop_at=stop_at, keep=[6, 12])
    go(c, broken, dataset, keep=[6, 12])
    for step in (6, 12):
        assert whole.weights_file(step).read_bytes() == broken.weights_file(step).read_bytes()
    assert log_without_time(whole) == log_without_time(broken)
    assert whole.state_files() == broken.state_files() == []


def test_a_corrupt_state_falls_back_to_the_older_one(tmp_path: Path, dataset: LoadedData) -> None:
    c, run, whole = cell(), Run(tmp_path / "r"), Run(tmp_path / "w")
    run.folder.mkdir()
    whole.folder.mkdir()
    go(c, whole, dataset)
    for stop_at in (4, 8):
        with pytest.raises(StoppedError):
            go(c, run, dataset, stop_at=stop_at)
    newest, older = run.state_files()
    newest.write_bytes(newest.read_bytes()[:-10])
    assert older.exists()
    go(c, run, dataset)
    assert run.weights_file(12).read_bytes() == whole.weights_file(12).read_bytes()
    assert log_without_time(run) == log_without_time(whole)


def test_a_lost_kept_checkpoint_is_made_again(tmp_path: Path, dataset: LoadedData) -> None:
    c, run = cell(), Run(tmp_path / "r")
    run.folder.mkdir()
    go(c, run, dataset, keep=[6, 12])
    before = run.weights_file(6).read_bytes()
    run.weights_file(6).unlink()
    go(c, run, dataset, keep=[6, 12])
    assert run.weights_file(6).read_bytes() == before


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_non_finite_loss_names_the_step_and_keeps_no_bad_weights(
    tmp_path: Path, dataset: LoadedData, clip: float | None
) -> None:
    run = Run(tmp_path / "r")
    run.folder.mkdir()
    with pytest.raises(CellFailedError, match=r"became (nan|inf) at step \d+, that of \d of 8 images"):
        go(cell(learning_rate=1e30, steps=50, gradient_clip=clip), run, dataset)
    assert not run.weights_file(50).exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1e30, "the loss measured on 16 train images is not finite in 8 of 8 bins of time"),  # finite weights
        (1e39, r"the state of the training: \d+ of \d+ values are not finite, in model\..* and \d+ more"),
    ],
)
def test_what_diverges_in_the_last_step_is_not_kept(
    tmp_path: Path, dataset: LoadedData, rate: float, message: str, precision: str
) -> None:
    run = Run(tmp_path / "r")
    run.folder.mkdir()
    at = r"after step 1 \(learning_rate 1e\+3[09], precision (fp32|bf16)\): "
    with pytest.raises(NonFiniteError, match=at + message) as caught:
        go(cell(learning_rate=rate, steps=1, precision=precision), run, dataset)
    assert describe(caught.value) == {"cause": "non-finite"}
    assert not list((tmp_path / "r").rglob("*.safetensors"))
    assert not [row for row in TrainLog(run).rows() if "loss_train" in row]


def test_the_optimiser_is_torchs_adamw() -> None:
    """The same bits, also where a parameter has no gradient at first and where the rate changes."""
    ours, theirs = ([torch.nn.Parameter(torch.arange(6.0).view(2, 3) - 2.5 + i) for i in range(2)] for _ in range(2))
    mine = AdamW(ours, lr=0.1, weight_decay=0.02)
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.02, fused=True)
    for step in range(4):
        mine.lr = reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        for parameters in (ours, theirs):
            for parameter in parameters[: 1 + (step > 0)]:
                parameter.square().sum().mul(step - 1.5).backward()
        mine.step()
        reference.step()
        mine.zero_grad()
        reference.zero_grad()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert mine.state[one].keys() == reference.state[other].keys()
        assert all(torch.equal(mine.state[one][key], value) for key, value in reference.state[other].items())


def test_moments_may_overflow(tmp_path: Path) -> None:
    state, file = TrainState.initial(cell(), "cpu"), tmp_path / "state.safetensors"
    name, parameter = next(state.network.named_parameters())
    state.optimizer.state[parameter] = {"exp_avg_sq": torch.full_like(parameter, torch.inf)}
    state.save(file)
    assert checkpoint.overflown(checkpoint.load(file).tensors) == [f"optimizer.{name}.exp_avg_sq"]
    assert checkpoint.newest([file], lambda *_: True) is not None


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path, part: str) -> None:
    state, file = TrainState.initial(cell(), "cpu"), tmp_path / "state.safetensors"
    name, parameter = next(state.network.named_parameters())
    state.optimizer.state[parameter] = {"exp_avg_sq": torch.zeros_like(parameter)}
    state.save(file)
    before = file.read_bytes()
    with torch.no_grad():
        state.tensors()[f"{part}.{name}"].view(-1)[:3] = torch.inf
    with pytest.raises(NonFiniteError, match=rf"not written: 3 of \d+ values are not finite, in {part}\.{name}"):
        state.save(file)
    assert file.read_bytes() == before


def test_a_state_of_an_older_version_that_is_not_finite_is_passed_over(
    tmp_path: Path, dataset: LoadedData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    c, run, whole = cell(), Run(tmp_path / "r"), Run(tmp_path / "w")
    for folder in (run.folder, whole.folder):
        folder.mkdir()
    go(c, whole, dataset)
    for stop_at in (4, 8):
        with pytest.raises(StoppedError):
            go(c, run, dataset, stop_at=stop_at)
    newest = run.state_files()[0]
    tensors, meta = checkpoint.load(newest)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "require_finite", lambda _: None)
        checkpoint.save(newest, tensors, meta)
    go(c, run, dataset)
    assert "1 of" in caplog.text
    assert "values are not finite" in caplog.text
    assert run.weights_file(12).read_bytes() == whole.weights_file(12).read_bytes()


def test_weights_change_and_the_loss_falls(tmp_path: Path, dataset: LoadedData) -> None:
    c, run = cell(steps=150, batch_size=32), Run(tmp_path / "r")
    run.folder.mkdir()
    go(c, run, dataset)
    rows = [row for row in TrainLog(run).rows() if "loss" in row]
    assert np.mean([r["loss"] for r in rows[-20:]]) < 0.75 * rows[0]["loss"]
    measured = {row["step"]: row for row in TrainLog(run).rows() if "loss_train" in row}
    assert set(measured) == {3, 150}
    assert measured[150]["loss_heldout"] < measured[3]["loss_heldout"]
    assert len(measured[150]["bins_train"]) == 8


def test_the_window_average_forgets_the_initial_weights() -> None:
    c = cell(ema_window=0.1)
    left = np.prod([ema_decay(c, step) for step in range(1, 1001)])
    assert left < 1e-6  # what the constant 0.9999 leaves of them after 1,000 steps: 90 %
    assert np.isclose(np.prod([ema_decay(cell(ema_window=None), step) for step in range(1, 1001)]), 0.9048, atol=1e-4)


def test_the_window_is_a_share_of_the_run() -> None:
    """The mean age of what is averaged grows in proportion to the step."""
    c = cell(ema_window=0.1)

    def mean_age(steps: int) -> float:
        weight, ages = 1.0, []
        for step in range(steps, 0, -1):
            decay = ema_decay(c, step)
            ages.append((weight * (1 - decay), steps - step))
            weight *= decay
        return sum(w * age for w, age in ages) / sum(w for w, _ in ages)

    assert mean_age(2000) / 2000 == pytest.approx(mean_age(500) / 500, rel=0.02)
    assert mean_age(2000) / 2000 == pytest.approx(1 / 11, rel=0.05)  # integral of (s/t)^(1/w): w / (1 + w)


def test_a_checkpoint_of_the_average_differs_from_the_weights(tmp_path: Path, dataset: LoadedData) -> None:
    c, run = cell(), Run(tmp_path / "r")
    run.folder.mkdir()
    go(c, run, dataset)
    tensors, meta = checkpoint.load(run.weights_file(12))
    assert meta["cell"] == c.id
    assert not torch.equal(tensors["model.patch_embedding.weight"], tensors["ema.patch_embedding.weight"])


def test_the_measured_loss_uses_the_same_noise_for_every_cell(dataset: LoadedData) -> None:
    """An untrained model of any shape predicts zero noise: its loss is the power of the noise."""
    shapes = [cell(), cell().model_copy(update={"seed": 9})]
    shapes.append(Cell.model_validate({"model": {"depth": 1, "width": 32, "patch_size": 2}}))
    data = batches(dataset, "cpu")
    losses = [measure_losses(TrainState.initial(c, "cpu").ema, c, data, 16) for c in shapes]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0]["loss_train"] == pytest.approx(1.0, abs=0.1)
