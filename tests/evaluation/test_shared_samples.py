"""Evaluations that differ in the extractor or the reference alone have one set of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import InputError
from harness.evaluation.generate import Generator, generate
from harness.evaluation.measure import _with_same_samples
from harness.model.network import build
from harness.runs.cellruns import evaluation_key
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from sweeps.protocols import evaluations
from tests.records import write_record

CELL = Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}})
FIRST = Evaluation(samples=10, sampling_steps=2, extractor="digits-cnn")
OTHER = FIRST.model_copy(update={"reference": "held-out", "at": (3,)})


class Silent(Generator):
    """It must not be asked for samples."""

    def __call__(self, first: int, count: int, hooks: Hooks) -> dict[str, torch.Tensor]:
        raise AssertionError("sampled again")


def test_samples_are_taken_from_an_evaluation_with_the_same_ones(tmp_path: Path) -> None:
    run, network = Run(tmp_path), build(CELL.model, CELL.data.shape, 2).eval()
    network.initialise(0)
    key, other = evaluation_key(FIRST, 7), evaluation_key(OTHER, 7)
    made = generate(Generator(network, CELL, FIRST, "cpu", weights=1), run, key, batch=6, hooks=Hooks())
    again = generate(Silent(network, CELL, OTHER, "cpu", weights=1), run, other, [key], batch=6, hooks=Hooks())
    assert made is not None
    assert again is not None
    assert np.array_equal(made.images[np.arange(10)], again.images[np.arange(10)])
    assert np.array_equal(made.labels, again.labels)
    for weights, batch, donors in ((2, 6, [key]), (1, 5, [key]), (None, 6, [key]), (1, 6, [])):
        silent = Silent(network, CELL, OTHER, "cpu", weights=weights)
        with pytest.raises(AssertionError, match="sampled again"):  # of other weights, in other parts, or not to be had
            generate(silent, run, f"{weights}-{batch}-{len(donors)}@7", donors, batch=batch, hooks=Hooks())


def test_which_evaluations_have_the_same_samples(tmp_path: Path) -> None:
    run = Run(tmp_path / CELL.id)
    key = write_record(run, CELL, FIRST, 7)
    write_record(run, CELL, FIRST, 6)
    write_record(run, CELL, FIRST.model_copy(update={"seed": 1}), 7)
    write_record(run, CELL, FIRST.model_copy(update={"guidance": 2.0}), 7)
    assert _with_same_samples(run, OTHER, 7) == [key]
    assert _with_same_samples(run, FIRST, 7) == [], "its own are no other's"
    assert FIRST.has_samples_of({"samples": 10, "sampling_steps": 2}), "a record of before a field has its default"


def test_extractors_are_a_list_of_evaluations() -> None:
    found = evaluations({"samples": 10, "extractors": ["digits-cnn", "inception-v3-compat"]}, "evaluation 1")
    assert found == [Evaluation(samples=10, extractor=name) for name in ("digits-cnn", "inception-v3-compat")]
    for wrong in ({"extractors": "digits-cnn"}, {"extractors": ["digits-cnn"], "extractor": "digits-cnn"}):
        with pytest.raises(InputError, match="a list of extractors, and no `extractor` beside"):
            evaluations(wrong, "evaluation 1")
    with pytest.raises(InputError, match="unknown extractor 'x'"):
        evaluations({"extractors": ["x"]}, "evaluation 1")
