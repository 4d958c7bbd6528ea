"""Which channels an evaluation guides: from the sweep to the samples and to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.diffusion.guidance import guided
from harness.evaluation import generate as module
from harness.evaluation.generate import Generator, generate
from harness.model.dit import DiT
from harness.runs.collect import _guidance_channels
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from tests.cells import dit_spec

VAE = {"kind": "trained", "factor": 2, "channels": 4}
MODEL = {"depth": 1, "width": 16, "heads": 2, "patch_size": 2}


def samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch, vae: dict[str, Any] | None, **options: Any
) -> tuple[torch.Tensor, list[int | None]]:
    """Model outputs of a cell, and the channels that were guided."""
    cell = Cell.model_validate({"model": MODEL, "data": {"vae": vae}})
    evaluation = Evaluation(samples=3, sampling_steps=4, sampler="ddim", **options)
    asked: list[int | None] = []
    decoded: list[torch.Tensor] = []

    def spy(dit: DiT, y: Any, scale: float, channels: int | None = None) -> Any:
        asked.append(channels)
        return guided(dit, y, scale, channels)

    def decode(x0: torch.Tensor) -> torch.Tensor:
        decoded.append(x0)
        return x0[:, :1]

    monkeypatch.setattr(module, "guided", spy)
    dit = DiT(dit_spec(cell), cell.data.shape).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for parameter in dit.parameters():
        parameter.normal_(0, 0.2, generator=random)
    generate(Generator(dit, cell, evaluation, "cpu", decode), Run(folder), evaluation.id, batch=3, hooks=Hooks())
    return torch.cat(decoded), asked


def test_latents_of_four_channels_are_guided_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = samples(tmp_path / "1", monkeypatch, VAE)
    published, asked = samples(tmp_path / "2", monkeypatch, VAE, guidance=3.0)
    assert asked == [3]
    named, asked = samples(tmp_path / "3", monkeypatch, VAE, guidance=3.0, guidance_channels="first-three")
    assert asked == [3]
    everything, asked = samples(tmp_path / "4", monkeypatch, VAE, guidance=3.0, guidance_channels="all")
    assert asked == [4]
    assert torch.equal(published, named)
    assert (published - everything).abs().max() > 1e-3
    assert (published - plain).abs().max() > 1e-3


@pytest.mark.parametrize("vae", [None, {**VAE, "channels": 3}, {**VAE, "channels": 8}])
def test_any_other_number_of_channels_is_guided_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: dict[str, Any] | None
) -> None:
    _, asked = samples(tmp_path, monkeypatch, vae, guidance=3.0)
    assert asked == [vae["channels"] if vae else 1]


def test_the_table_says_what_was_guided() -> None:
    def found(channels: int, **record: Any) -> str | None:
        return _guidance_channels(record, channels)

    assert found(4, guidance=1.0, guidance_channels="as-published") is None
    assert found(4, guidance=1.5, guidance_channels="as-published") == "first-three"
    assert found(4, guidance=1.5, guidance_channels="first-three") == "first-three"
    assert found(4, guidance=1.5, guidance_channels="all") == "all"
    assert found(1, guidance=1.5, guidance_channels="as-published") == "all"
    assert found(3, guidance=1.5, guidance_channels="first-three") == "all"  # the three are all there are
    assert found(1, guidance=1.5) == "all"  # a record of before the option
