"""Sampling in parts: resumed where it was, read when asked for, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.pixels import to_uint8
from harness.data.sources import load
from harness.errors import CellFailedError, NonFiniteError
from harness.evaluation.extractors import Features
from harness.evaluation.features import Extraction
from harness.evaluation.generate import Generator, generate, load_weights
from harness.evaluation.metrics import score
from harness.evaluation.parts import Samples
from harness.files import write_json
from harness.model.dit import DiT
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.diffusion import Flow
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from harness.training.loop import Options, train
from tests.cells import dit_spec

CELL = Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}})
FLOW = CELL.model_copy(update={"diffusion": Flow(objective="flow")})
EVALUATION = Evaluation(samples=20, sampling_steps=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with made-up weights."""
    generator = torch.Generator().manual_seed(0)
    state = DiT(dit_spec(CELL), CELL.data.shape).state_dict()
    random = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    run = Run(tmp_path)
    weights = {f"{part}.{name}": value for part in ("model", "ema") for name, value in random.items()}
    checkpoint.save(run.weights_file(7), {name: value.clone() for name, value in weights.items()}, {})
    return run


def sample(
    run: Run, key: str, hooks: Hooks | None = None, cell: Cell = CELL, evaluation: Evaluation = EVALUATION
) -> Samples:
    dit = load_weights(run, CELL, 7, ema=True, device="cpu")
    made = generate(Generator(dit, cell, evaluation, "cpu"), run, key, batch=6, hooks=hooks or Hooks())
    assert made is not None
    return made[0]


@pytest.mark.parametrize(
    ("cell", "evaluation"),
    [(CELL, EVALUATION), (FLOW, EVALUATION.model_copy(update={"sampler": "sde", "guidance": 1.5}))],
    ids=["ddpm", "sde"],
)
def test_interrupted_sampling_goes_on_and_the_metrics_are_the_same(
    run: Run, cell: Cell, evaluation: Evaluation
) -> None:
    questions = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped at sample 12 of 20"):
        sample(run, "stopped", Hooks(should_stop=lambda: next(questions)), cell, evaluation)
    before = {path: path.stat().st_mtime_ns for path in run.samples_parts("stopped").values()}
    assert list(run.samples_parts("stopped")) == [0, 6]
    stopped, whole = (sample(run, key, None, cell, evaluation) for key in ("stopped", "whole"))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not made again
    assert np.array_equal(stopped[np.arange(20)], whole[np.arange(20)])
    dataset = load(CELL.data)
    assert score(stopped, EVALUATION, CELL.data, dataset) == score(whole, EVALUATION, CELL.data, dataset)


def test_one_part_is_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sample(run, "k")
    whole = samples[np.arange(20)]
    assert samples.shape == whole.shape == (20, 8, 8, 1)
    wanted = np.array([19, 0, 7, 7, 6, 5])
    assert np.array_equal(samples[wanted], whole[wanted])
    assert np.array_equal(samples[np.array([13])], whole[[13]])
    read: list[Path] = []
    original = checkpoint.load

    def load_and_tell(path: Path) -> object:
        read.append(path)
        return original(path)

    monkeypatch.setattr(checkpoint, "load", load_and_tell)
    fresh = Samples(run, "k", 20, 6)
    for start in range(0, 20, 3):
        fresh[np.arange(start, min(start + 3, 20))]
    assert read == [*run.samples_parts("k").values()]  # each once, in order


def test_a_part_that_is_gone_is_said(run: Run) -> None:
    samples = sample(run, "k")
    run.samples_part("k", 6).unlink()
    with pytest.raises(CellFailedError, match=r"part-00000006\.safetensors: missing or damaged .*; launch again"):
        samples[np.arange(20)]


def test_weights_of_another_architecture_are_one_line(run: Run) -> None:
    wider = CELL.model_copy(update={"model": CELL.model.model_copy(update={"width": 32})})
    with pytest.raises(
        CellFailedError, match=r"weights-00000007\.safetensors: weights of another arch.*size"
    ) as caught:
        load_weights(run, wider, 7, ema=True, device="cpu")
    assert "\n" not in str(caught.value)


# what is not finite


def written_by_an_older_version(monkeypatch: pytest.MonkeyPatch, path: Path, found: checkpoint.Loaded) -> None:
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "require_finite", lambda _: None)
        checkpoint.save(path, found.tensors, found.meta)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_not_sampled(run: Run, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    found = checkpoint.load(run.weights_file(7))
    name = next(name for name in found.tensors if name.startswith("ema."))
    found.tensors[name].view(-1)[:2] = value
    written_by_an_older_version(monkeypatch, run.weights_file(7), found)
    with pytest.raises(NonFiniteError, match=rf"weights-00000007\.safetensors: 2 of \d+ values are .* in {name[4:]}"):
        load_weights(run, CELL, 7, ema=True, device="cpu")
    load_weights(run, CELL, 7, ema=False, device="cpu")


def test_samples_of_a_diverged_training_are_not_written(tmp_path: Path) -> None:
    model = {"depth": 1, "width": 8, "patch_size": 4}
    training = {"steps": 3, "batch_size": 8, "ema_window": 1.0, "learning_rate": 2.0}
    cell, run = Cell.model_validate({"model": model, "training": training}), Run(tmp_path)
    train(cell, load(cell.data), run, Options("cpu", [3], Recording(loss_images=8), checkpoint_seconds=1e9), Hooks())
    network = load_weights(run, cell, 3, ema=True, device="cpu")
    generator = Generator(network, cell, Evaluation(samples=40, sampler="ddpm", sampling_steps=50), "cpu")
    with pytest.raises(
        NonFiniteError,
        match=r"samples 0 to 39 of 40: \d+ of 40 samples are not finite \(\d+ of 2560 values; the first is",
    ):
        generate(generator, run, "k", batch=40, hooks=Hooks())
    assert not run.samples_parts("k")


def test_what_a_decoder_makes_must_be_finite(run: Run) -> None:
    def decode(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(torch.arange(len(x))[:, None, None, None] == 4, torch.inf)

    dit = load_weights(run, CELL, 7, ema=True, device="cpu")
    with pytest.raises(
        NonFiniteError, match=r"samples 0 to 5 of 20: 1 of 6 decoded samples are not finite .* the first is number 4\)"
    ):
        generate(Generator(dit, CELL, EVALUATION, "cpu", decode), run, "k", batch=6, hooks=Hooks())


def test_parts_of_an_older_version_are_made_again(run: Run) -> None:
    whole = sample(run, "k")[np.arange(20)]
    first = run.samples_part("k", 0)
    part = checkpoint.load(first).tensors
    checkpoint.save(first, {**part, "images": torch.zeros_like(part["images"])}, {"first": 0})  # black may be a nan
    assert np.array_equal(sample(run, "k")[np.arange(20)], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_level_stands_for_what_is_not_finite(dtype: torch.dtype, value: float) -> None:
    x = torch.zeros(5, 1, 2, 2, dtype=dtype)
    assert to_uint8(x).unique().tolist() == [128]
    x[3, 0, 1] = value
    with pytest.raises(
        NonFiniteError, match=r"1 of 5 images are not finite \(2 of 20 values; the first is number 13\)"
    ):
        to_uint8(x, first=10)


@pytest.mark.parametrize("part", ["pool", "logits", "spatial"])
def test_features_that_are_not_finite_are_neither_made_nor_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    extraction = Extraction("digits-cnn")
    file = tmp_path / "features-00000000.safetensors"
    whole = extraction.features_of(images)
    odd = {"pool": whole.pool, "logits": torch.zeros(40, 3), "spatial": torch.zeros(40, 3)}
    odd[part] = torch.full((40, 3), torch.nan)
    written_by_an_older_version(monkeypatch, file, checkpoint.Loaded(odd, {"extractor": extraction.label}))
    ((_, found),) = extraction.parts(images, lambda _: file)
    assert torch.equal(found.pool, whole.pool)
    monkeypatch.setitem(extraction.__dict__, "_network", lambda _: Features(**odd))
    with pytest.raises(NonFiniteError, match=rf"images 0 to 39: digits-cnn@.*: 40 of 40 images' {part} features are"):
        list(extraction.parts(images))


def test_a_number_that_is_not_finite_is_in_no_json(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    with pytest.raises(
        NonFiniteError, match=r"record\.json: 2 numbers are not finite: frechet is nan, nested\[1\]\.kid is inf"
    ):
        write_json(file, {"frechet": np.nan, "samples": 4, "nested": [{"kid": 1.0}, {"kid": np.inf}]})
    assert not file.exists()
