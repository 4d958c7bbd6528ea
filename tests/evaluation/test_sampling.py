"""How samples are made: the noise of the steps, a compiled network, and samples that several evaluations share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.draws import Normals, SampleStreams
from harness.evaluation.generate import Drawn, Generator, draw, generate, load_weights, noise_of_steps, streams_of
from harness.evaluation.parts import Origin, Samples, compiled_before
from harness.launch import compiling
from harness.launch.payload import Payload
from harness.model.network import Network, build
from harness.runs.cellruns import evaluation_key
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording, Resources
from harness.threads import helpers
from harness.training import checkpoint
from harness.training.hooks import Hooks

CELL = Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}})
EVALUATION = Evaluation(samples=20, sampler="ddpm", sampling_steps=3)

needs_compiler = pytest.mark.skipif(bool(compiling.missing_compiler("cpu")), reason="no C++ compiler here")


def random_network(seed: int) -> Network:
    network = build(CELL.model, CELL.data.shape, CELL.diffusion.outputs)
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():  # a fresh DiT predicts zeros
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
    return network.eval().requires_grad_(False)


def put_weights(run: Run, seed: int = 0) -> None:
    """Made-up weights of step 7, plain and averaged."""
    parts = (("model", seed), ("ema", seed + 1))
    tensors = {f"{part}.{name}": value for part, s in parts for name, value in random_network(s).state_dict().items()}
    checkpoint.save(run.weights_file(7), tensors, {"step": 7, "cell": CELL.id})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with weights."""
    run = Run(tmp_path / CELL.id)
    put_weights(run)
    return run


def sampled(run: Run, evaluation: Evaluation, *, compiled: bool = False, hooks: Hooks | None = None) -> Samples:
    network = load_weights(run, CELL, 7, ema=evaluation.ema, device="cpu")
    if compiled:
        network.compile_regions()
    generator = Generator(network, CELL, evaluation, "cpu", weights=run.weights_checksum(7), compiled=compiled)
    made = generate(generator, run, evaluation_key(evaluation, 7), batch=8, hooks=hooks or Hooks())
    assert made is not None
    return made.images


# noise


def test_no_noise_is_drawn_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = SampleStreams.noise

    def noting(self: SampleStreams, step: int) -> Normals:
        drawn.append(step)
        return original(self, step)

    monkeypatch.setattr(SampleStreams, "noise", noting)
    network = random_network(0)
    for sampler, expected in (("ddpm", [0, 1, 2, 3]), ("ddim", [0])):
        evaluation = Evaluation(sampler=sampler, sampling_steps=4)
        draw(
            network,
            CELL.diffusion,
            evaluation,
            streams_of(evaluation, 0, 3, CELL.data.shape),
            labels(3),
            lambda _: None,
        )
        assert drawn == expected, sampler
        drawn.clear()


def test_noise_made_ahead_is_that_of_its_step() -> None:
    streams = SampleStreams(5, 2, 3, (1, 4, 4))
    with noise_of_steps(streams, 5, "cpu") as noise:
        for step in (0, 1, 2, 4, 3, 7):
            assert np.array_equal(noise(step).numpy(), streams.noise(step).rows(slice(2, 5), (1, 4, 4))), step


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % 10


# beside the sampling


def test_parts_are_written_by_another_thread(run: Run) -> None:
    here, entered = threading.get_ident(), list[int]()

    @contextlib.contextmanager
    def writing() -> Iterator[None]:
        if threading.get_ident() != here:
            entered.append(threading.get_ident())
            if len(entered) == 3:
                raise OSError("the disk is full")
        yield

    generator = Generator(random_network(0), CELL, Evaluation(samples=40, sampling_steps=1), "cpu")
    with pytest.raises(OSError, match="the disk is full"):
        generate(generator, run, "k", batch=8, hooks=Hooks(writing=writing))
    assert list(run.samples_parts("k")) == [0, 8], "what was written before stays"
    made = generate(generator, run, "k", batch=8, hooks=Hooks())
    assert made is not None
    assert made.drawn == 24


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_what_a_gpu_samples_is_decoded_by_another_thread(device: str) -> None:
    threads = list[int]()

    def decode(x0: torch.Tensor) -> torch.Tensor:
        threads.append(threading.get_ident())
        return x0

    generator = Generator(random_network(0), CELL, EVALUATION, device, decode)
    with helpers("samples") as beside:
        finish = generator.finishing(Drawn(0, torch.zeros(2, 1, 8, 8), labels(2)), beside)
        assert finish()["images"].shape == (2, 8, 8, 1)
    assert (threads[0] == threading.get_ident()) == (device == "cpu")


# compiled


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where compiled code goes; the tests below ask for the same code."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


@needs_compiler
def test_a_compiled_network_samples_the_same_within_rounding(cache: Path) -> None:
    evaluation = Evaluation(samples=8, sampling_steps=4)
    eager, compiled = random_network(0), random_network(0)
    compiled.compile_regions()
    streams = streams_of(evaluation, 0, 8, CELL.data.shape)
    first, second, again = (
        draw(network, CELL.diffusion, evaluation, streams, labels(8), lambda _: None)
        for network in (eager, compiled, compiled)
    )
    assert list(cache.iterdir()), "nothing was compiled"
    assert torch.equal(second, again)
    assert first.std() > 0.1
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_samples_go_on_as_they_were_begun(run: Run) -> None:
    key, origin = evaluation_key(EVALUATION, 7), Origin(CELL.id, EVALUATION, run.weights_checksum(7))
    assert compiled_before(run, key, origin) is None
    whole = sampled(run, EVALUATION, compiled=True)[np.arange(20)]
    assert compiled_before(run, key, origin) is True
    other = EVALUATION.model_copy(update={"reference": "held-out"})
    assert compiled_before(run, evaluation_key(other, 7), Origin(CELL.id, other, run.weights_checksum(7))) is True
    run.samples_part(key, 8).unlink()
    run.samples_part(key, 16).unlink()
    assert np.array_equal(sampled(run, EVALUATION, compiled=True)[np.arange(20)], whole)
    before = run.samples_part(key, 0).stat().st_ino
    eager = sampled(run, EVALUATION)[np.arange(20)]
    assert run.samples_part(key, 0).stat().st_ino != before, "parts of the other kind are made again"
    assert np.abs(eager.astype(int) - whole).max() <= 1  # levels of 0 to 255
    assert compiled_before(run, key, origin) is False


def job(folder: Path, asked: str = "auto", **more: Any) -> Payload:
    resources = Resources.model_validate({"compile": asked, **more})
    return Payload(str(folder / "run"), 1, "t", "s", CELL, (), Recording(), resources, str(folder))


@needs_compiler
def test_sampling_is_compiled_where_it_is_long_or_was(tmp_path: Path) -> None:
    short, long = Evaluation(samples=100), Evaluation(samples=100_000_000)

    def compiled(evaluation: Evaluation, before: bool | None = None, asked: str = "auto") -> bool:
        return compiling.choose_sampling(job(tmp_path, asked), evaluation, "cpu", before).compiled

    assert not compiled(short)
    assert compiled(long)
    assert compiled(short, before=True)
    assert not compiled(long, before=False)
    assert compiled(short, asked="on")
    assert not compiled(long, asked="off")
    assert compiled(short, before=True, asked="off"), "samples that were begun go on as they are"
    cost = compiling.saved_in_sampling(job(tmp_path), Evaluation(samples=1000), "cpu") / 1000
    between = Evaluation(samples=round((compiling.WARM_SECONDS + compiling.COLD_SECONDS) / cost))
    assert not compiled(between)
    compiling.record_compiled(compiling.sampling_code(job(tmp_path), between))
    assert compiled(between), "its code is there already"
    assert not compiled(Evaluation(samples=between.samples // 2, guidance=2)), "twice as many images are other code"


# shared


def test_evaluations_that_only_score_otherwise_share_their_samples(run: Run) -> None:
    whole = sampled(run, EVALUATION)[np.arange(20)]
    stages: list[str] = []
    hooks = Hooks(report=lambda value: stages.append(value["stage"]))
    for change in ({"reference": "held-out"}, {"samples": 16}):
        other = EVALUATION.model_copy(update=change)
        assert np.array_equal(sampled(run, other, hooks=hooks)[np.arange(16)], whole[:16])
    assert stages == [], "nothing was sampled"
    longer = EVALUATION.model_copy(update={"samples": 24})
    found = sampled(run, longer, hooks=hooks)[np.arange(20)]
    assert np.array_equal(found[:16], whole[:16])
    assert np.abs(found.astype(int) - whole).max() <= 1, "a larger batch rounds otherwise"
    assert len(stages) == 3, "only its last part is new"
    (run.samples_part(evaluation_key(EVALUATION, 7), 0)).unlink()
    assert np.array_equal(sampled(run, longer)[np.arange(20)], found), "each has files of its own"


@pytest.mark.parametrize("change", [{"seed": 1}, {"sampler": "ddim"}, {"guidance": 2.0}, {"ema": False}], ids=str)
def test_other_samples_are_not_shared(run: Run, change: dict[str, Any]) -> None:
    sampled(run, EVALUATION)
    stages: list[str] = []
    sampled(run, EVALUATION.model_copy(update=change), hooks=Hooks(report=lambda value: stages.append(value["stage"])))
    assert stages == ["sample"] * 9, "three parts of three steps"


def test_samples_of_other_weights_are_not_shared(run: Run) -> None:
    sampled(run, EVALUATION)
    put_weights(run, seed=5)
    stages: list[str] = []
    other = EVALUATION.model_copy(update={"reference": "held-out"})
    sampled(run, other, hooks=Hooks(report=lambda value: stages.append(value["stage"])))
    assert len(stages) == 9
