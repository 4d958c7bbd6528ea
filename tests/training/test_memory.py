"""The micro-batch that fits is found by trying; activations that are computed again change no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.errors import CellFailedError
from harness.launch import conditions
from harness.launch.payload import Payload
from harness.model.network import Network
from harness.model.network import build as build_network
from harness.runs.triage import Cause, describe
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.model import ModelSpec
from harness.spec.resources import Recording, Resources
from harness.training import memory
from harness.training.memory import largest_micro_batch
from harness.training.passes import make_ready
from harness.training.ranks import Ranks


def cell(batch: int = 250, depth: int = 1) -> Cell:
    return Cell.model_validate(
        {"model": {"depth": depth, "width": 8, "patch_size": 4}, "training": {"steps": 4, "batch_size": batch}}
    )


def limit(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let a network run out of memory above so many images; returns the sizes that are tried, as they come."""
    tried: list[int] = []

    def build(model: ModelSpec, shape: InputShape, outputs: int) -> Network:
        network = build_network(model, shape, outputs)
        network.register_forward_pre_hook(lambda _, inputs: check(len(inputs[0])))
        return network

    def check(count: int) -> None:
        tried.append(count)
        if count > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory, "build", build)
    return tried


def find(cell: Cell, ranks: Ranks | None = None) -> int:
    return largest_micro_batch(cell, "cpu", ranks or Ranks(), compiled="off", recompute=False)


def test_the_largest_part_that_fits_is_found_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "harness")
    tried = limit(monkeypatch, 30)
    assert find(cell()) == 25
    assert tried == [250, 125, 50, 25, 25], "once more on top of its gradients"
    assert "250 images at once do not fit the GPU's memory; trying 125" in caplog.text
    assert "micro-batch: 25 of the 250 images of a rank, what fits" in caplog.text
    tried = limit(monkeypatch, 250)
    assert find(cell()) == 250
    assert tried == [250]
    limit(monkeypatch, 0)
    with pytest.raises(CellFailedError, match=r"not even one image at once fits the GPU.*--recompute") as caught:
        find(cell(8))
    assert describe(caught.value)["cause"] == Cause.MEMORY


def test_all_ranks_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Ranks):
        """The second of them has room for 10 images."""

        world = 2

        def any_rank(self, flag: bool) -> bool:
            return flag or tried[-1] > 10

    tried = limit(monkeypatch, 100)
    assert find(cell(80), Two()) == 10
    assert tried == [40, 20, 20, 10, 10]


def test_trials_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have networks of their own, and what they draw for these comes from a generator that nobody else uses."""
    before = torch.get_rng_state()
    limit(monkeypatch, 3)
    assert find(cell(8)) == 2
    assert torch.equal(torch.get_rng_state(), before)


def job(folder: Path, attempts: int, **resources: object) -> Payload:
    found = Payload(
        str(folder / "run"), attempts + 1, "t", "s", cell(8), (), Recording(), Resources.model_validate(resources),
        str(folder),
    )  # fmt: skip
    found.run.attempts_folder.mkdir(parents=True, exist_ok=True)
    return found


def test_a_resume_keeps_what_the_first_attempt_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    found = {"torch": "2", "device": "cuda", "hardware": "H200", "threads": 1, "sampling_batch": 250}
    monkeypatch.setattr(conditions, "numeric_conditions", lambda *_: dict(found))
    monkeypatch.setattr(conditions, "require", lambda *_: None)

    def largest(*_: object, **__: object) -> int:
        tried.append(4)
        return tried[-1]

    monkeypatch.setattr(conditions, "largest_micro_batch", largest)

    def attempt(number: int, **resources: object) -> tuple[object, object]:
        payload = job(tmp_path, number - 1, compile="off", **resources)
        made = conditions.for_training(payload, conditions.conditions_of(payload, "cuda"), Ranks())
        payload.run.claim(number, {})
        payload.run.record(number, "started", {"conditions": made})
        return made["micro_batch"], made["recompute"]

    assert attempt(1) == (4, False)
    assert attempt(2) == (4, False)
    assert len(tried) == 1, "it is not tried again"
    assert attempt(3, micro_batch=2, recompute=True) == (2, True), "what is asked for is done"
    found["hardware"] = "A100"
    assert attempt(4) == (4, False)
    assert len(tried) == 2, "another GPU has other room"
    found["device"] = "cpu"
    assert attempt(5) == (None, False), "on a CPU nothing is tried"


def test_a_recomputing_attempt_is_followed_by_such(tmp_path: Path) -> None:
    first = job(tmp_path, 0, recompute=True)
    made = conditions.conditions_of(first, "cpu")
    first.run.claim(1, {})
    first.run.record(1, "started", {"conditions": made})
    assert conditions.conditions_of(job(tmp_path, 1), "cpu")["recompute"] is True


def gradients(*, recompute: bool, precision: bool) -> tuple[list[Tensor], int]:
    """Of a network of three blocks, and how many values its forward pass keeps."""
    kept = 0
    c = cell(8, depth=3)
    network = build_network(c.model, c.data.shape, 2)
    network.initialise(0)
    with torch.no_grad():
        for weight in network.parameters():  # what starts at zero gives zeros
            weight.add_(0.01)
    names = [name for name, _ in network.named_parameters()]
    make_ready(network, compiled="off", recompute=recompute)
    assert [name for name, _ in network.named_parameters()] == names
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, c.data.shape.channels, 8, 8, generator=generator)

    def keep(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            output = network(x, torch.arange(8), torch.arange(8))
        loss = output.float().square().mean()
    loss.backward()
    return [weight.grad for weight in network.parameters() if weight.grad is not None], kept


@pytest.mark.parametrize("precision", [False, True], ids=["fp32", "bf16"])
def test_recomputed_gradients_are_the_same_bits_from_less_memory(precision: bool) -> None:
    plain, much = gradients(recompute=False, precision=precision)
    again, little = gradients(recompute=True, precision=precision)
    assert little < much / 2
    assert len(plain) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
