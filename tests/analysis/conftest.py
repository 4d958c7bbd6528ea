"""A study made up in a temporary folder, as `collect` would have written it."""

import csv
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.runs.columns import ATTEMPT_COLUMNS, CURVE_COLUMNS, RESULT_COLUMNS

PAPER = Path(__file__).parents[2] / "results" / "paper"

SHAPES = [(depth, width, patch) for depth, width in ((2, 32), (4, 64), (6, 96)) for patch in (4, 2, 1)]
BAD_MESSAGE = "<script>alert('x')</script> loss is not finite"


@pytest.fixture(autouse=True)
def _quick_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts are cut for PDFs, which takes most of a report's time; reports of wider fixtures have real ones."""
    monkeypatch.setattr("analysis.figures.style._pdf", lambda _: b"%PDF-")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="raise")
        writer.writeheader()
        writer.writerows(rows)


def result_row(depth: int = 2, width: int = 32, patch: int = 2, **changes: Any) -> dict[str, Any]:
    block, seed, step = changes.get("block", "adaln-zero"), changes.get("seed", 0), changes.get("step", 1000)
    seed = seed or 0
    tokens, params = (8 // patch) ** 2, 18 * depth * width**2
    gmacs = params * tokens / 1.5e9
    name = (
        f"d{depth}-w{width}-p{patch}" + ("" if block == "adaln-zero" else f"-{block}") + (f"-s{seed}" if seed else "")
    )
    rng = np.random.default_rng([depth, width, patch, seed, hash_of(block)])
    frechet = 40 * (gmacs * 1000) ** -0.3 * (1000 / step) ** 0.2 * np.exp(rng.normal(0, 0.05))
    row = {
        "study": "made-up", "cell": f"{abs(hash_of(name)):012x}", "name": name, "data": "digits", "vae": "",
        "block": block, "recipe": "", "labels": "uniform",
        "depth": depth, "width": width, "heads": 1, "patch_size": patch, "tokens": tokens, "params": params,
        "params_m": params / 1e6, "gmacs": gmacs, "seed": seed, "step": step, "batch_size": 64,
        "train_gmacs": 3 * gmacs * 64 * step, "loss_train": 0.2, "loss_heldout": 0.22, "evaluation": "aaaaaaaaaaaa",
        "samples": 1500, "sampler": "ddpm", "sampling_steps": 50, "guidance": 1.0, "guidance_channels": "", "ema": True,
        "sampling_seed": 0,
        "extractor": "digits-cnn@0123abcd", "reference": "digits/train(1347)@4567cdef", "frechet": float(frechet),
        "kid": 0.01, "precision": 0.8, "recall": 0.5, "inception_score": 7.5, "train_seconds": 12.5,
        "sample_seconds": 3.5,
    }  # fmt: skip
    return row | changes


def hash_of(text: str) -> int:
    """A stable number of a text."""
    return zlib.crc32(text.encode())


def write_results(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_csv(folder / "results.csv", list(RESULT_COLUMNS), rows)
    return folder


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study: nine shapes by default, at one or more steps, with curves, attempts and sample pictures."""

    def make(
        shapes: Sequence[tuple[int, int, int]] = SHAPES,
        steps: Sequence[int] = (1000,),
        blocks: Sequence[str] = ("adaln-zero",),
        seeds: Sequence[int] = (0,),
        extras: bool = True,
        folder: str = "made-up",
    ) -> Path:
        place = tmp_path / folder
        rows = [
            result_row(*shape, block=block, seed=seed, step=step)
            for shape in shapes for block in blocks for seed in seeds for step in steps
        ]  # fmt: skip
        write_results(place, rows)
        if extras:
            write_extras(place, rows)
        return place

    return make


def write_extras(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    cells = {row["cell"]: row for row in rows}
    curves, attempts = [], []
    for index, (cell, row) in enumerate(cells.items()):
        base = {"study": "made-up", "cell": cell, "name": row["name"]}
        for step in (10, 50, 100, 250, 500, 1000):
            loss = 1.2 * step**-0.25 * (1 + 0.02 * index)
            curves.append({**base, "step": step, "loss": loss})
            if step >= 250:
                curves.append({**base, "step": step, "loss_train": loss * 0.9, "loss_heldout": loss * 0.93})
        about = {
            "started": "2025-01-02T03:04:05Z", "ended": "2025-01-02T03:05:05Z", "seconds": 60.0, "host": "machine",
            "device": "cpu", "cpu": "Fast" if index else "Slow", "threads": 1, "torch": "2.9.1", "commit": "abc1234",
        }  # fmt: skip
        outcome = {"outcome": "done", "message": ""}
        if index == 0:
            outcome = {"outcome": "failed", "cause": "non-finite loss", "message": BAD_MESSAGE}
        attempts.append({**base, "attempt": 1, **about, **outcome})
        picture = np.random.default_rng(index).integers(0, 255, (40, 40), dtype=np.uint8)
        (folder / "samples").mkdir(exist_ok=True)
        Image.fromarray(picture).resize((160, 160), Image.Resampling.NEAREST).save(
            folder / "samples" / f"{row['name']}-{cell}.png"
        )
    write_csv(folder / "curves.csv", list(CURVE_COLUMNS), curves)
    write_csv(folder / "attempts.csv", list(ATTEMPT_COLUMNS), attempts)
