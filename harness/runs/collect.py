"""Run folders -> results/<study>/{results,nested,curves,attempts}.csv and samples/: what the analysis reads."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.files import file_name, write_bytes, write_text
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun, losses_key, split_key
from harness.runs.columns import CURVE_COLUMNS, RESULT_COLUMNS, TABLES, protocol_hash
from harness.runs.log import TrainLog
from harness.runs.speed import train_tflops
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.runs.triage import cause_of
from harness.spec.cell import Cell
from harness.spec.data import Data, PretrainedVae
from harness.spec.evaluation import Evaluation, TrainedExtractor
from harness.spec.identity import canonical_json, spec_id

#: A row of a table: name of a column to value, None where not measured; see `harness.runs.columns`.
Row = dict[str, Any]


def collect(study: Study, items: list[CellRun]) -> list[Row]:
    """Write the tables of a study and return the rows of results.csv, in the order of the grid.

    A cell without a record has no row in results.csv; its attempts stand in attempts.csv. Tables that were brought here
    stay as they are.
    """
    if brought(study, items):
        return []
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for item in items:
        identity = {"study": study.name, "cell": item.cell.id, "name": item.name}
        log, attempts = TrainLog(item.run).rows(), item.run.attempts()
        for result, nested in _measured(item, log, attempts):
            row = dict.fromkeys(RESULT_COLUMNS) | identity | result
            tables["results.csv"].append(row | {"protocol": protocol_hash(row) if row["evaluation"] else None})
            tables["nested.csv"] += [row | point for point in nested]
        logged = [column for column in CURVE_COLUMNS if column not in identity]
        tables["curves.csv"] += [identity | {column: row.get(column) for column in logged} for row in log]
        tables["attempts.csv"] += [identity | _attempt_row(attempt) for attempt in attempts]
        _copy_pictures(study, item)
    _copy_cards(study, items)
    for name, columns in TABLES.items():
        _write_csv(study.table(name), list(columns), tables[name])
    return tables["results.csv"]


def brought(study: Study, items: Iterable[CellRun]) -> set[str]:
    """The cells of a study's results if none of its own was ever begun here: tables made elsewhere, as those in git.

    Empty where there are no such tables.
    """
    if any(item.now.state is not State.MISSING for item in items):
        return set()
    try:
        with study.table("results.csv").open(encoding="utf-8", newline="") as file:
            return {row["cell"] for row in csv.DictReader(file) if row.get("cell")}
    except FileNotFoundError:
        return set()


def _measured(item: CellRun, log: list[Row], attempts: list[Attempt]) -> list[tuple[Row, list[Row]]]:
    """The row of results.csv and the rows of nested.csv that each record of a cell gives.

    Ordered by step; at one step the evaluations of the sweep come first, in its order, then all others. In a sweep
    without evaluations, every other step at which the losses were measured has a row, too.
    """
    own = [evaluation.id for evaluation in item.evaluations]
    found = []
    for key, record in item.run.all_measured().items():
        row = _result_row(item.cell, split_key(key)[0], record, log) | _speed(item.cell, record["macs"], log, attempts)
        found.append((row, record["metrics"].get("nested", [])))  # absent in older records
    if not item.evaluations:
        known = {row["step"] for row, _ in found}
        found += [(row, []) for row in _loss_rows(item, log) if row["step"] not in known]

    def place(measured: tuple[Row, list[Row]]) -> tuple[int, int, str]:
        step, evaluation = measured[0]["step"], measured[0]["evaluation"]
        return step, own.index(evaluation) if evaluation in own else len(own), evaluation or ""

    return sorted(found, key=place)


def _loss_rows(item: CellRun, log: list[Row]) -> list[Row]:
    """A row for every step whose losses the log of a cell holds, once its training is on record."""
    key, records = losses_key(item.cell), item.run.all_measured()
    last = item.cell.training.steps
    record = item.run.measured(key) or next((r for r in records.values() if r["step"] == last), None)
    if record is None:
        return []
    optimal = {name: value for name, value in record["metrics"].items() if name.startswith("loss_optimal")}
    about = {**{key: record.get(key, 1) for key in ("params", "macs", "draws")}, "metrics": optimal}
    steps = dict.fromkeys(row["step"] for row in log if "loss_train" in row)
    return [_result_row(item.cell, None, {**about, "step": step}, log) for step in steps]


def _result_row(cell: Cell, evaluation_id: str | None, record: Row, log: list[Row]) -> Row:
    """A row of results.csv without the columns study, cell and name; a metric has one name in record and table.

    Without the id of an evaluation it is a row of losses, and what tells of the sampling is empty.
    """
    step, evaluation, gmacs = record["step"], record.get("evaluation", {}), record["macs"] / 1e9
    losses = next((row for row in reversed(log) if row["step"] == step and "loss_train" in row), {})
    seconds = {row["step"]: row["seconds"] for row in log if "seconds" in row}
    return {
        "data": cell.data.name,
        "vae": _vae_name(cell.data),
        "block": cell.model.label,
        "objective": cell.diffusion.label,
        **{k: getattr(cell.model, k, None) for k in ("depth", "width", "heads", "patch_size")},
        "tokens": cell.tokens,
        "params": record["params"],
        "params_m": record["params"] / 1e6,
        "gmacs": gmacs,
        "seed": cell.seed,
        "seeds": "; ".join(f"{name}={own}" for name, own in cell.drawn._asdict().items() if own != cell.seed) or None,
        "step": step,
        "batch_size": cell.training.batch_size,
        "recipe": _recipe(cell),
        "learning_rate": cell.training.learning_rate,
        "horizon": cell.training.steps if cell.training.decay_steps else None,
        "draws": record.get("draws", 1),
        "train_gmacs": 3 * gmacs * cell.training.batch_size * step,
        "loss_train": losses.get("loss_train"),
        "loss_heldout": losses.get("loss_heldout"),
        "evaluation": evaluation_id,
        **{k: evaluation.get(k) for k in ("sampler", "sampling_steps", "guidance", "ema")},
        "sampling_passes": cell.diffusion.sampling_passes(
            evaluation["sampler"], evaluation["sampling_steps"], evaluation.get("guidance", 1)
        )
        if evaluation
        else None,
        "guidance_channels": _guidance_channels(evaluation, cell.data.shape.channels),
        "labels": evaluation.get("labels", "uniform") if evaluation and cell.data.labels else None,
        "sampling_seed": evaluation.get("seed"),
        **{k: v for k, v in record["metrics"].items() if k in RESULT_COLUMNS},
        "train_seconds": next((seconds[s] for s in sorted(seconds) if s >= step), None),
        "sample_seconds": record.get("seconds"),
    }


def _speed(cell: Cell, macs: int, log: list[Row], attempts: list[Attempt]) -> Row:
    """Images per second between the first and the last row of the log, and what that is in operations."""
    seconds = {row["step"]: row["seconds"] for row in log if "seconds" in row}
    first, last = min(seconds, default=0), max(seconds, default=0)
    if last == first or seconds[last] <= seconds[first]:
        return {}
    images_per_s = (last - first) * cell.training.batch_size / (seconds[last] - seconds[first])
    tflops = train_tflops(macs, images_per_s)
    rates = [attempt.started.get("gemm_tflops") for attempt in attempts if attempt.started]
    best = next((rate for rate in reversed(rates) if rate), None)  # older attempts did not measure it
    return {"images_per_s": images_per_s, "tflops": tflops, "mfu": tflops / best if best else None}


def _guidance_channels(evaluation: Row, channels: int) -> str | None:
    """Which channels were guided in fact, so that equal measurements compare; None without guidance."""
    if evaluation.get("guidance", 1) == 1:
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
    """The fields that decide the weights, have no column and differ from their defaults; cells that differ here are no
    repeats of each other.
    """
    fields = json.loads(canonical_json(cell))
    in_columns = {
        "model": cell.model.in_columns,
        "diffusion": cell.diffusion.in_columns,
        "data": ("name", "vae"),
        "training": ("steps", "batch_size"),
    }
    return "; ".join(
        f"{key}={value}"
        for section in ("model", "diffusion", "data", "training")
        for key, value in fields.get(section, {}).items()
        if key not in in_columns.get(section, ())
    )


def _attempt_row(attempt: Attempt) -> Row:
    started, ended = attempt.started or {}, attempt.ended or {}
    conditions, estimate = started.get("conditions", {}), started.get("estimate", {})
    seconds = None
    if started and ended:
        seconds = (datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(started["time"])).total_seconds()
    return {
        "attempt": attempt.number,
        "outcome": attempt.outcome,
        "started": started.get("time"),
        "ended": ended.get("time"),
        "seconds": seconds,
        "estimated_seconds": estimate.get("seconds"),
        **{f"estimated_{end}": estimate.get(end) for end in ("least", "most")},
        "estimate_source": estimate.get("source"),
        "device": conditions.get("hardware"),
        "cpu": started.get("machine", {}).get("cpu"),
        **{k: conditions.get(k) for k in ("threads", "ranks", "torch")},
        **{k: started.get(k) for k in ("host", "commit", "diff")},
        "cause": cause_of(attempt),
        "message": ended.get("message"),
    }


def _copy_pictures(study: Study, item: CellRun) -> None:
    """Copy the pictures of the first evaluation at the last step, if there are any."""
    name, key = file_name(item.name, f"-{item.cell.id}.png"), item.owed[-1]
    pictures = {
        item.run.grid_file(key): study.samples_folder / name,
        item.run.nearest_file(key): study.nearest_folder / name,
    }
    for source, target in pictures.items():
        _copy(source, target)


def _copy_cards(study: Study, items: list[CellRun]) -> None:
    """Copy what tells the worth of the autoencoders and the trained extractors of a study, if there are any."""
    shared, files = Shared(study.root), {}
    for data in {item.cell.data for item in items if item.cell.data.vae is not None}:
        name = data.encoding_name
        files[shared.reconstruction_file(name)] = study.cards_folder / f"autoencoder-{name}.json"
        files[shared.reconstruction_picture(name)] = study.cards_folder / f"autoencoder-{name}.png"
    for choice, data in {(asked.extractor, item.cell.data) for item in items for asked in item.evaluations}:
        if isinstance(choice, TrainedExtractor):
            name = choice.folder_name(data)
            files[shared.extractor_card(name)] = study.cards_folder / f"extractor-{name}.json"
    for source, target in files.items():
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, if there is one and it is not there already."""
    with contextlib.suppress(FileNotFoundError):
        data = source.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            write_bytes(target, data)


def _write_csv(path: Path, columns: list[str], rows: list[Row]) -> None:
    """Write a table; keys of a row that are no columns are left out, None becomes empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name) for name in columns] for row in rows)
    write_text(path, text.getvalue())
