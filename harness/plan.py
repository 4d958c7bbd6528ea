"""Cells -> rows with tokens, parameters, GMACs, training and sampling cost, estimated time and state."""

from __future__ import annotations

from statistics import median
from typing import Any

from harness.cell import Cell, Evaluation
from harness.flops import count
from harness.launch import CellRun, default_slots, visible_gpus
from harness.runs import State, TrainLog
from sweeps.grid import Sweep

Row = dict[str, Any]

#: Assumed speed of one CPU thread, until a finished cell of the study tells better: multiply-adds per second in matrix
#: products, and seconds of overhead per transformer block and forward-and-backward pass. Order of magnitude only.
ASSUMED_GMACS_PER_S = 25.0
ASSUMED_BLOCK_SECONDS = 0.8e-3

#: A backward pass costs about two forward passes.
_BACKWARD = 2


def plan(sweep: Sweep, items: list[CellRun]) -> list[Row]:
    """One row a cell. `estimated_s` is wall time on one slot, fitted to the study's finished cells if there are any."""
    rows: list[Row] = []
    for item in items:
        cell = item.cell
        cost = count(cell.model, cell.data.shape)
        gmacs = cost.macs / 1e9
        evaluations = sweep.evaluations_of(cell)
        train_gmacs = 3 * gmacs * cell.training.batch_size * cell.training.steps
        rows.append(
            {
                "id": cell.id,
                "name": item.name,
                "data": cell.data.name,
                "block": cell.model.block,
                "depth": cell.model.depth,
                "width": cell.model.width,
                "heads": cell.model.heads,
                "patch_size": cell.model.patch_size,
                "tokens": cell.tokens,
                "params": cost.params,
                "params_m": cost.params / 1e6,
                "gmacs": gmacs,
                "gflops": 2 * gmacs,
                "seed": cell.seed,
                "train_gmacs": train_gmacs,
                "sampling_gmacs": sum(_sampling_passes(cell, e) for e in evaluations) * gmacs,
                "estimated_s": _assumed_seconds(cell, evaluations, gmacs),
                "state": item.now.state.value,
            }
        )
    scale = _measured_over_assumed(items, rows)
    for row in rows:
        row["estimated_s"] = round(row["estimated_s"] * scale, 1)
    return rows


def totals(sweep: Sweep, rows: list[Row]) -> Row:
    """Sums over the grid, and the wall time on the slots of this machine of what is not done."""
    gpus = [] if sweep.resources.device == "cpu" else visible_gpus()
    slots = default_slots(sweep.resources, gpus)
    left = [row["estimated_s"] for row in rows if row["state"] != State.DONE]
    return {
        "cells": len(rows),
        "train_gmacs": sum(row["train_gmacs"] for row in rows),
        "sampling_gmacs": sum(row["sampling_gmacs"] for row in rows),
        "slots": slots,
        # cells start in order, each on the first free slot; no better than the sum over slots or the longest cell
        "estimated_s": round(max(sum(left) / slots, max(left, default=0.0)), 1),
    }


def _sampling_passes(cell: Cell, evaluation: Evaluation) -> int:
    """Forward passes of one image each; guidance doubles them."""
    guided = 2 if evaluation.guidance != 1 else 1
    steps = len(evaluation.steps(cell.training.steps))
    return steps * evaluation.samples * evaluation.sampling_steps * guided


def _assumed_seconds(cell: Cell, evaluations: tuple[Evaluation, ...], gmacs: float) -> float:
    recipe = cell.training
    pass_seconds = ASSUMED_BLOCK_SECONDS * (cell.model.depth + 2)
    train = recipe.steps * (pass_seconds + (1 + _BACKWARD) * recipe.batch_size * gmacs / ASSUMED_GMACS_PER_S)
    images = sum(_sampling_passes(cell, e) for e in evaluations)
    return train + images * gmacs / ASSUMED_GMACS_PER_S


def _measured_over_assumed(items: list[CellRun], rows: list[Row]) -> float:
    """Median ratio over the finished cells; 1 when there are none."""
    ratios = []
    for item, row in zip(items, rows, strict=True):
        if item.now.state is State.DONE and (seconds := measured_seconds(item)):
            ratios.append(seconds / row["estimated_s"])
    return median(ratios) if ratios else 1.0


def measured_seconds(item: CellRun) -> float | None:
    """Wall time of training and evaluating a cell, from its records."""
    from harness.runs import read_json

    trained = [row["seconds"] for row in TrainLog(item.run).rows() if "seconds" in row]
    records = [read_json(item.run.evaluation_file(key)) for key in item.owed]
    if not trained or any(record is None for record in records):
        return None
    return float(trained[-1]) + sum(float(record["seconds"]) for record in records if record)
