"""Scoring tells how far it is, and a signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.evaluation.metrics import Setup, score
from harness.evaluation.watch import Watch
from harness.launch.signals import _STOP_SIGNALS, StopFlag
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Report, StoppedError


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    yield StopFlag()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(Data())


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_every_stage_counts_up_to_its_end(digits: LoadedData) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def report(value: Report) -> None:
        told.setdefault(value["stage"], []).append((value["done"], value["total"]))

    score(noise(600), Evaluation(samples=600), Data(), digits, Setup(watch=Watch(report)))
    first, last = ("features", "train reference", "distances", "floor"), ("precision", "nearest", "held-out reference")
    assert [stage.removeprefix("score ") for stage in told] == [*first, "kernel distance", *last]
    for stage, counts in told.items():
        assert counts == sorted(counts), stage
    for stage in ("features", "train reference", "distances", "precision", "nearest"):
        assert told[f"score {stage}"][-1][0] == told[f"score {stage}"][-1][1] > 0
    assert len(told["score precision"]) > 20


def test_a_signal_ends_scoring_wherever_it_is(
    digits: LoadedData, flag: StopFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object, **__: object) -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begun.append(time.monotonic())
        while time.monotonic() - begun[0] < 30:
            time.sleep(0.01)

    begun: list[float] = []
    monkeypatch.setattr("torch_fidelity.metric_kid.kid_features_to_metric", endless)
    with pytest.raises(StoppedError, match="stopped while scoring; the next launch goes on there"):
        score(noise(60), Evaluation(samples=60), Data(), digits, Setup(watch=Watch(at_once=flag.at_once)))
    assert time.monotonic() - begun[0] < 5
    assert flag.is_set()


def test_a_signal_waits_for_what_writes(flag: StopFlag) -> None:
    with flag.at_once():
        pass
    os.kill(os.getpid(), signal.SIGINT)  # outside, it only sets the flag
    with pytest.raises(StoppedError), flag.at_once():
        pytest.fail("it was asked to stop before")
