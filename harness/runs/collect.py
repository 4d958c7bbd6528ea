"""Run folders -> results/<study>/{results,nested,curves,attempts}.csv and samples/*.png: what the analysis reads."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from typing import Any

from harness.files import read_json, write_bytes, write_text
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun
from harness.runs.columns import ATTEMPT_COLUMNS, CURVE_COLUMNS, NESTED_COLUMNS, RESULT_COLUMNS, protocol_hash
from harness.runs.log import TrainLog
from harness.runs.study import Study
from harness.runs.triage import cause_of
from harness.spec.cell import Cell
from harness.spec.data import Data, PretrainedVae
from harness.spec.evaluation import Evaluation
from harness.spec.identity import canonical_json, spec_id

Row = dict[str, Any]


def collect(study: Study, items: list[CellRun]) -> list[Row]:
    """Write the tables of a study and return the rows of results.csv, in the order of the grid.

    A cell without a record has no row in results.csv; its attempts stand in attempts.csv.
    """
    results: list[Row] = []
    curves: list[Row] = []
    nested: list[Row] = []
    attempts: list[Row] = []
    for item in items:
        log = TrainLog(item.run).rows()
        rows = _result_rows(study, item, log)
        results += rows
        nested += [{**row, **point} for row in rows for point in row["nested"]]
        curves += [{**_identity(study, item), **{k: row.get(k) for k in list(CURVE_COLUMNS)[3:]}} for row in log]
        attempts += [{**_identity(study, item), **_attempt_row(attempt)} for attempt in item.run.attempts()]
        _copy_grid(study, item)
    for name, columns, rows in (
        ("results.csv", RESULT_COLUMNS, results),
        ("nested.csv", NESTED_COLUMNS, nested),
        ("curves.csv", CURVE_COLUMNS, curves),
        ("attempts.csv", ATTEMPT_COLUMNS, attempts),
    ):
        _write_csv(study, name, list(columns), rows)
    return results


def _identity(study: Study, item: CellRun) -> Row:
    return {"study": study.name, "cell": item.cell.id, "name": item.name}


def _result_rows(study: Study, item: CellRun, log: list[Row]) -> list[Row]:
    measured = {row["step"]: row for row in log if "loss_train" in row}
    seconds = {row["step"]: row["seconds"] for row in log if "seconds" in row}
    cell, model, recipe = item.cell, item.cell.model, item.cell.training
    rows = []
    for path in item.run.evaluation_files():
        record = read_json(path)
        if record is None:
            continue
        step, evaluation = record["step"], record["evaluation"]
        gmacs = record["macs"] / 1e9
        losses = measured.get(step, {})
        rows.append(
            {
                **_identity(study, item),
                "data": cell.data.name,
                "vae": _vae_name(cell.data),
                **{k: getattr(model, k, None) for k in ("block", "depth", "width", "heads", "patch_size")},
                "tokens": cell.tokens,
                "params": record["params"],
                "params_m": record["params"] / 1e6,
                "gmacs": gmacs,
                "seed": cell.seed,
                "step": step,
                "batch_size": recipe.batch_size,
                "recipe": _recipe(cell),
                "train_gmacs": 3 * gmacs * recipe.batch_size * step,
                "loss_train": losses.get("loss_train"),
                "loss_heldout": losses.get("loss_heldout"),
                "evaluation": path.stem.split("@")[0],
                **{k: evaluation[k] for k in ("sampler", "sampling_steps", "guidance", "ema")},
                "guidance_channels": _guidance_channels(evaluation, cell.data.shape.channels),
                "labels": evaluation.get("labels", "uniform") if cell.data.labels else None,
                "sampling_seed": evaluation["seed"],
                **{k: v for k, v in record["metrics"].items() if k in RESULT_COLUMNS},
                "nested": record["metrics"].get("nested", []),  # absent in older records; no column of this table
                "train_seconds": next((seconds[s] for s in sorted(seconds) if s >= step), None),
                "sample_seconds": record["seconds"],
            }
        )
    for row in rows:
        row["protocol"] = protocol_hash(row)
    own = [evaluation.id for evaluation in item.evaluations]  # in the order of the sweep; the others follow
    place = {row["evaluation"]: own.index(row["evaluation"]) if row["evaluation"] in own else len(own) for row in rows}
    return sorted(rows, key=lambda row: (row["step"], place[row["evaluation"]], row["evaluation"]))


def _guidance_channels(evaluation: Row, channels: int) -> str | None:
    """What the option came to, so that equal measurements compare however they were asked for; None unguided."""
    if evaluation["guidance"] == 1:
        return None
    option = evaluation.get("guidance_channels", "as-published")  # absent in records of before there was one
    return "first-three" if Evaluation(guidance_channels=option).guided_channels(channels) < channels else "all"


def _vae_name(data: Data) -> str | None:
    """The autoencoder by its hub name, or by its recipe's id; None for pixels."""
    if data.vae is None:
        return None
    known = isinstance(data.vae, PretrainedVae) and data.vae == PretrainedVae(kind="pretrained", name=data.vae.name)
    name = data.vae.name if isinstance(data.vae, PretrainedVae) else data.vae.kind
    return name if known else f"{name}@{spec_id(data.vae)[:6]}"


def _recipe(cell: Cell) -> str:
    """What else decides the weights, as far as it differs from the defaults: cells that differ here are no repeats."""
    fields = json.loads(canonical_json(cell))
    in_columns = {"model": cell.model.in_columns, "data": ("name", "vae"), "training": ("steps", "batch_size")}
    for section, keys in in_columns.items():
        for key in keys:
            fields.get(section, {}).pop(key, None)
    parts = [
        f"{key}={value}"
        for section in ("model", "diffusion", "data", "training")
        for key, value in fields.get(section, {}).items()
    ]
    return "; ".join(parts)


def _attempt_row(attempt: Attempt) -> Row:
    started, ended = attempt.started or {}, attempt.ended or {}
    conditions = started.get("conditions", {})
    seconds = None
    if started and ended:
        seconds = (datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(started["time"])).total_seconds()
    return {
        "attempt": attempt.number,
        "outcome": attempt.outcome,
        "started": started.get("time"),
        "ended": ended.get("time"),
        "seconds": seconds,
        "host": started.get("host"),
        "device": conditions.get("hardware"),
        "threads": conditions.get("threads"),
        "ranks": conditions.get("ranks"),
        "torch": conditions.get("torch"),
        "commit": started.get("commit"),
        "diff": started.get("diff"),
        "cause": cause_of(attempt),
        "message": ended.get("message"),
    }


def _copy_grid(study: Study, item: CellRun) -> None:
    """The picture of the last step of the first evaluation; an absent one leaves no trace."""
    source = item.run.grid_file(item.owed[-1])
    if source.exists():
        target = study.samples_folder / f"{item.name}-{item.cell.id}.png"
        data = source.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            write_bytes(target, data)


def _write_csv(study: Study, name: str, columns: list[str], rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if row.get(k) is None else row[k] for k in columns} for row in rows)
    write_text(study.table(name), text.getvalue())
