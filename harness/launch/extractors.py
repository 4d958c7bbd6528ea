"""Extractors that a sweep has trained on its own images: which are owed, and their training before the cells."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.launch.view import Say
from harness.runs.cellruns import CellRun
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.spec.data import Data
from harness.spec.evaluation import ExtractorChoice, TrainedExtractor
from harness.spec.resources import EXECUTORS
from harness.training.hooks import Hooks, Report, StoppedError
from sweeps.grid import Sweep

if TYPE_CHECKING:
    from harness.evaluation.trained import Wanted


def owed_extractors(items: Iterable[CellRun]) -> list[Wanted]:
    """The trained extractors that measure cells which are not done, once each; imports torch if there are any."""
    due = (item for item in items if item.now.state is not State.DONE)
    return _wanted((evaluation.extractor, item.cell.data) for item in due for evaluation in item.evaluations)


def _wanted(asked: Iterable[tuple[ExtractorChoice | None, Data]]) -> list[Wanted]:
    mine = {(choice, data) for choice, data in asked if isinstance(choice, TrainedExtractor)}
    if not mine:
        return []
    from harness.evaluation.trained import Wanted

    return list({choice.folder_name(data): Wanted(choice, data) for choice, data in mine}.values())


def train_all(sweep: Sweep, study: Study, hooks: Hooks, say: Say) -> None:
    """Train all extractors of a sweep that are to be trained.

    Raises:
        InputError: there are none; or see `train_extractors`.
        StoppedError: see there.
        NonFiniteError: see there.
    """
    wanted = wanted_extractors(sweep)
    if not wanted:
        raise InputError(f'{sweep.path}: no extractor is to be trained; allowed: extractor = {{kind = "trained"}}')
    train_extractors(sweep, study, wanted, hooks, say)


def wanted_extractors(sweep: Sweep) -> list[Wanted]:
    """All trained extractors of a sweep, once each."""
    return _wanted((e.extractor, cell.data) for _, cell in sweep.cells() for e in sweep.evaluations_of(cell))


def train_extractors(sweep: Sweep, study: Study, wanted: Iterable[Wanted], hooks: Hooks, say: Say) -> None:
    """Train those that are not there yet, in this process; of two launches at once one trains and the other waits.

    Raises:
        InputError: the images or the device are not there.
        StoppedError: asked to stop; nothing is kept of one that is half trained.
        NonFiniteError: the weights became non-finite.
    """
    from harness.data.dataset import Source
    from harness.data.sources import load
    from harness.evaluation.trained import train_once
    from harness.evaluation.watch import Watch
    from harness.launch.machine import own_device
    from harness.training.conditions import be_deterministic

    shared = Shared(study.root)
    source = Source.of(sweep.resources, shared.images_folder)
    be_deterministic(compiled=False)
    for one in wanted:
        folder, there = one.folder(shared), one.is_trained(shared)
        if not there:
            say(f"training extractor {one.choice.name} on {one.data.name}, {one.choice.steps} steps")
        images = partial(load, one.data.model_copy(update={"subset": None}), source)
        device = own_device(sweep.resources, str(sweep.path))
        card = train_once(one, images, shared, device, Watch(_Reporter(hooks, say)))
        say(f"{folder}: {'trained already; ' if there else ''}{quality(card)}")


class _Reporter:
    """Passes reports on; says once that this process waits; stops when asked to."""

    def __init__(self, hooks: Hooks, say: Say) -> None:
        self._hooks, self._say, self._waits = hooks, say, ""

    def __call__(self, value: Report) -> None:
        if self._hooks.should_stop():
            raise StoppedError("stopped; the same command trains the extractor from the beginning")
        waits = value.get("waits", "")
        if waits and waits != self._waits:
            self._say(waits)
        self._waits = waits
        if not waits:
            self._hooks.report({**value, "stage": "train-extractor"})


def require_extractors(sweep: Sweep, study: Study, wanted: Iterable[Wanted]) -> None:
    """Check that they are there, where jobs go on without the launch, which then trains none.

    Raises:
        InputError: one is not.
    """
    for one in wanted if EXECUTORS.facts(sweep.resources.executor).detached else ():
        if not one.is_trained(Shared(study.root)):
            raise InputError(
                f"{sweep.path}: evaluation.extractor {one.choice.name}: not trained yet; first, on a machine with the "
                f"images: dit-harness train-extractor {sweep.path}"
            )


def quality(card: dict[str, Any]) -> str:
    """In words, what an extractor is worth."""
    from harness.evaluation.trained import failed

    floor, fails = card["floors"][0], failed(card)
    passes = [check["what"] for check in card["checks"] if check["rises"]]
    verdict = f"FD-{card['name']} rises under {', '.join(passes)}" if passes else ""
    doubt = f"FD-{card['name']} does NOT rise under {', '.join(fails)}" if fails else ""
    return (
        f"extractor {card['name']}@{card['content_hash'][:8]} of {card['learns']}: held-out accuracy "
        f"{card['heldout_accuracy']:.3f} (chance {card['chance']:.3f}), {floor['samples'][0]} held-out images are at "
        f"{floor['frechet']:.4g}; {'; '.join(filter(None, (verdict, doubt)))}"
    )
