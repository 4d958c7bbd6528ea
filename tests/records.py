"""Records of evaluations, as tests make them without measuring anything."""

from __future__ import annotations

from typing import Any

from harness.files import write_json
from harness.runs.cellruns import evaluation_key
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation


def write_record(run: Run, cell: Cell, evaluation: Evaluation, step: int, /, **fields: Any) -> str:
    """Write the record of an evaluation, and return its key; `fields` replace those of the record."""
    key = evaluation_key(evaluation, step)
    described = evaluation.model_dump(mode="json", exclude={"at"})
    record = {"cell": cell.id, "step": step, "evaluation": described, "metrics": {}, **fields}
    write_json(run.evaluation_file(key), record)
    return key
