"""The verb verify: files of the published formats with random numbers, on a table with a model small enough."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import InputError
from harness.evaluation import adm, inception, published, verify
from harness.evaluation.generate import Generator
from harness.evaluation.metrics import Setup
from harness.evaluation.published import Published
from harness.runs.columns import PUBLISHED_INCEPTION
from harness.spec.data import Data, InputShape
from harness.spec.evaluation import Evaluation
from harness.spec.model import DiTSpec
from tests.commands import ROOT, run_here
from tests.evaluation.published_files import (
    write_random_decoder,
    write_random_dit,
    write_random_inception,
    write_random_reference,
)

MODEL, SHAPE = DiTSpec(depth=1, width=16, heads=2, patch_size=2), InputShape(4, 4, 1000)

TABLE = published.rows()

#: A model of the table, but small.
ROW = TABLE[0].model_copy(
    update={
        **{"model": "DiT-tiny", "resolution": 32, "depth": 1, "width": 16, "heads": 2, "samples": 12},
        **{"sampling_steps": 3, "precision": None, "recall": None},
    }
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a verification takes."""
    folder = tmp_path_factory.mktemp("made")
    write_random_inception(folder / "inception.pth")
    write_random_reference(folder / "reference.npz", 32)
    write_random_dit(folder / "dit.pt", MODEL, SHAPE)
    write_random_decoder(folder / "results" / "_vae" / ROW.decoder)
    return folder


@pytest.fixture
def lab(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of its own."""
    for name in ("inception.pth", "reference.npz", "dit.pt"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "_vae").symlink_to(made / "results" / "_vae")
    monkeypatch.setattr(published, "rows", lambda: [ROW, *TABLE])
    monkeypatch.setattr(verify, "score", quick_score)
    monkeypatch.setattr(adm.AdmReference, "check", lambda _: None)
    return tmp_path


def quick_score(images: Any, evaluation: Evaluation, data: Data, dataset: None, setup: Setup) -> dict[str, Any]:
    """Numbers that depend on every pixel; true ones of 2048 features take a minute (see test_inception)."""
    assert dataset is None
    pixels = np.asarray(images[np.arange(evaluation.samples)], dtype=np.float64)
    values = {"frechet": pixels.mean(), "sfid": pixels.std(), "inception_score": pixels[1:].mean() / 100}
    extraction = setup.extraction(evaluation, data)
    batch = adm.find(setup.resources.adm_reference, data.image_shape.size)
    return {**values, "extractor": extraction.label, "reference": batch.label}


FILES = ("--inception-weights", "inception.pth", "--adm-reference", "reference.npz")


def shown(lab: Path) -> list[dict[str, str]]:
    """The rows of the table of what was shown."""
    path = lab / "results" / verify.TABLE
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def test_the_table_holds_the_papers_values() -> None:
    rows = published.rows()
    assert {(row.label, row.guidance): row.frechet for row in rows} == {
        ("DiT-XL/2 256x256", 1.0): 9.62,
        ("DiT-XL/2 256x256", 1.25): 3.22,
        ("DiT-XL/2 256x256", 1.5): 2.27,
        ("DiT-XL/2 512x512", 1.0): 12.03,
        ("DiT-XL/2 512x512", 1.25): 4.64,
        ("DiT-XL/2 512x512", 1.5): 3.04,
        ("SiT-XL/2 256x256", 1.5): 2.06,
    }
    with (ROOT / "results/paper/published.csv").open() as file:
        paper = {(row["resolution"], float(row["cfg_scale"])): row for row in csv.DictReader(file) if row["sfid"]}
    for row in rows:
        if row.model == "DiT-XL/2":
            theirs = paper[str(row.resolution), row.guidance]
            columns = {"frechet": "fid"}
            assert {v.metric: v.value for v in row.values} == {
                v.metric: float(theirs[columns.get(v.metric, v.metric)]) for v in row.values
            }
            assert len(row.values) == 5
        assert (row.samples, row.sampling_steps) == (50_000, 250)
        assert all(0 < value.tolerance < 0.06 * value.value for value in row.values)


def test_nothing_is_shown_yet() -> None:
    (head,) = csv.reader((ROOT / "results" / verify.TABLE).read_text().splitlines())
    assert head == [field.name for field in fields(verify.Verified)]


def test_a_try_is_never_called_fid_and_shows_nothing(lab: Path) -> None:
    done = run_here(lab, "verify", "dit.pt", *FILES, "--samples", "4", "--sampling-steps", "2")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "DiT-tiny 32x32: 4 samples, DDPM 2 steps" in text
    assert "path only: not comparable: N 4, not 12; sampling steps 2, not 3; features of inception-v3-compat@" in text
    assert "FD-inception-v3-compat" in text
    assert " FID" not in text
    assert not shown(lab)


def measured(lab: Path) -> dict[str, Any]:
    """What is on record."""
    (record,) = (lab / "results" / "_verify").glob("*/evaluations/*.json")
    found: dict[str, Any] = json.loads(record.read_text())["metrics"]
    return found


def test_killed_in_the_middle_it_goes_on_to_the_same_number(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("verify", "dit.pt", *FILES, "--sampling-batch", "5")
    assert run_here(lab, *command).returncode == 0
    whole = measured(lab)
    shutil.rmtree(lab / "results" / "_verify")
    drawn: list[int] = []
    original = Generator.draw

    def draw(self: Generator, first: int, *others: Any, **more: Any) -> Any:
        drawn.append(first)
        if drawn == [0, 5, 10]:
            raise KeyboardInterrupt
        return original(self, first, *others, **more)

    monkeypatch.setattr(Generator, "draw", draw)
    stopped = run_here(lab, *command)
    assert stopped.returncode == 130
    assert "goes on after the last whole batch" in stopped.stderr
    resumed = run_here(lab, *command)
    assert 0 not in drawn[3:]
    assert measured(lab) == whole
    before = len(drawn)
    again = run_here(lab, *command)
    assert (
        again.stdout[again.stdout.index("published and ours") :]
        == resumed.stdout[resumed.stdout.index("published and ours") :]
    )
    assert len(drawn) == before, "what is done is not done again"


def test_another_decoder_makes_other_samples(lab: Path) -> None:
    command = ("verify", "dit.pt", *FILES)
    assert run_here(lab, *command).returncode == 0
    folder = lab / "results" / "_vae"
    folder.unlink()
    write_random_decoder(folder / ROW.decoder, width=4)
    assert run_here(lab, *command).returncode == 0
    records = list((lab / "results" / "_verify").glob("*/evaluations/*.json"))
    assert len({json.loads(path.read_text())["metrics"]["frechet"] for path in records}) == 2


def test_what_compares_is_added_once(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the published weights of Inception, and a published value near ours."""
    monkeypatch.setattr(
        inception.INCEPTION, "weights_hash", lambda _: PUBLISHED_INCEPTION.rpartition("@")[2] + "0" * 56
    )
    first = run_here(lab, "verify", "dit.pt", *FILES)
    assert first.returncode == 1, "random weights are far from the paper's"
    rows = shown(lab)
    assert [row["metric"] for row in rows] == ["FID", "sFID", "IS"]
    assert {row["verdict"] for row in rows} == {"outside tolerance"}
    assert {row["samples"] for row in rows} == {"12"}
    assert run_here(lab, "verify", "dit.pt", *FILES).returncode == 1
    assert shown(lab) == rows
    near = ROW.model_copy(update={row: float(mine["ours"]) for row, mine in zip(published.METRICS, rows, strict=False)})
    monkeypatch.setattr(published, "rows", lambda: [near])
    assert run_here(lab, "verify", "dit.pt", *FILES).returncode == 0
    assert {row["verdict"] for row in shown(lab)[3:]} == {"within tolerance"}


def other_checkpoints(lab: Path) -> None:
    """A checkpoint of no published shape, and files that are none."""
    write_random_dit(lab / "wide.pt", DiTSpec(depth=1, width=32, heads=2, patch_size=2), SHAPE)
    write_random_dit(lab / "few.pt", MODEL, InputShape(4, 4, 10))
    (lab / "torn.pt").write_bytes(b"torn")
    torch.save({"weight": torch.zeros(2)}, lab / "other.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt"], "none.pt: no such file"),
        (["torn.pt"], "torn.pt: no readable PyTorch checkpoint"),
        (["other.pt"], "other.pt: not an official DiT checkpoint"),
        (
            ["wide.pt"],
            "wide.pt: nothing is published of objective ddpm-hybrid, depth 1, width 32, patch_size 2, input ",
        ),
        (
            ["few.pt"],
            "10 classes; the table has DiT-tiny 32x32 (ddpm-hybrid), DiT-XL/2 256x256 (ddpm-hybrid), DiT-XL/2",
        ),
        (["dit.pt", "--objective", "flow"], "dit.pt: nothing is published of objective flow"),
        (["dit.pt", "--objective", "x"], "--objective: 'x'; allowed with the official format: ddpm-hybrid, flow"),
        (["dit.pt", "--guidance", "4"], "--guidance: 4 is not published of DiT-tiny 32x32; allowed: 1"),
        (["dit.pt", "--sampling-steps", "1001"], "--sampling-steps: "),
        (["dit.pt"], "needs resources.adm_reference"),
        (["dit.pt", "--adm-reference", "none.npz"], "none.npz: no such file"),
        (["dit.pt", "--inception-weights", "none.pth"], "none.pth: no such file"),
        (["dit.pt", *FILES, "--results", "empty"], "stabilityai/sd-vae-ft-ema: not here"),
        (["dit.pt", *FILES, "--threads", "0"], "threads"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other_checkpoints(lab)
    if "--inception-weights" not in arguments:
        arguments = [*arguments, "--inception-weights", "inception.pth"]
    done = run_here(lab, "verify", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not list((lab / "results").glob("_verify"))


def test_rows_hold_no_more_than_they_should() -> None:
    with pytest.raises(ValueError, match="fid"):
        Published.model_validate({**dict.fromkeys(Published.model_fields, "1"), "fid": "1"})
    with pytest.raises(InputError, match="nothing is published"):
        published.find(Path("x.pt"), MODEL, SHAPE, "ddpm-hybrid", None)
