"""The cells of a sweep beside their run folders: what each owes, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.runs.layout import LOSSES
from harness.runs.state import ACTIVE, Run, RunState
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from sweeps.grid import Sweep


def evaluation_key(evaluation: Evaluation | str, step: int) -> str:
    """Name of the record of an evaluation (or of its id) at a step."""
    return f"{evaluation if isinstance(evaluation, str) else evaluation.id}@{step}"


def split_key(key: str) -> tuple[str, int]:
    """Id of the evaluation and step of a record's name."""
    evaluation, _, step = key.partition("@")
    return evaluation, int(step)


def losses_key(cell: Cell) -> str:
    """Name of the record of a cell that is to be trained and not evaluated."""
    return evaluation_key(LOSSES, cell.training.steps)


def owed_evaluations(
    cell: Cell, evaluations: tuple[Evaluation, ...], steps: tuple[int, ...] | None = None
) -> dict[str, tuple[Evaluation, int]]:
    """All records a cell owes, by key, in the order of steps; of `steps` instead of those the evaluations name."""
    owed = [(e, step) for e in evaluations for step in steps or e.steps(cell.training.steps)]
    return {evaluation_key(e, step): (e, step) for e, step in sorted(owed, key=lambda pair: pair[1])}


@dataclass
class CellRun:
    """A cell of the sweep with its run folder and its last known state."""

    name: str
    cell: Cell
    run: Run
    owed: list[str]
    evaluations: tuple[Evaluation, ...] = ()
    steps: tuple[int, ...] | None = None  # to measure kept weights of, without training: see `harness.launch.remeasure`
    now: RunState = field(init=False)
    restarts: int = 0
    mine: bool = False  # started by this launch
    held: bool = False  # the user knows that a stopped job keeps it
    study: str = ""  # from which it is seen
    search: tuple[int, ...] = ()  # seeds of a search for the best guidance: see `harness.launch.guidance`

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> RunState:
        """Read the state anew."""
        self.now = self.run.state(self.owed, self.cell.training.steps)
        return self.now

    @property
    def asked(self) -> dict[str, tuple[Evaluation, int]]:
        """All evaluations that it owes or has, by key."""
        return owed_evaluations(self.cell, self.evaluations, self.steps)

    @property
    def other_study(self) -> str:
        """The study whose job has it, where that is another one; else empty."""
        attempt = self.now.attempt
        owner = attempt.claim.get("study", self.study) if attempt is not None and self.now.state in ACTIVE else ""
        return owner if self.study and owner != self.study else ""

    @property
    def in_local_slot(self) -> bool:
        """Whether its last attempt is a process of this machine, in this allocation if there is one."""
        return self.now.attempt is not None and self.now.attempt.in_local_slot


def cell_runs(sweep: Sweep, study: Study) -> list[CellRun]:
    """Every cell of the sweep with its run and state; reads only."""
    older = study.older_runs()
    items = []
    for name, cell in sweep.cells():
        evaluations = sweep.evaluations_of(cell)
        owed = list(owed_evaluations(cell, evaluations)) or [losses_key(cell)]
        items.append(CellRun(name, cell, study.run(cell, older), owed, evaluations, study=study.name))
    return items
