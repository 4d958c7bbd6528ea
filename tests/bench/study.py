"""A finished study of many cells, made up: run folders as jobs leave them, written by the harness's own writers."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from harness.data.draws import DRAWS
from harness.files import write_bytes
from harness.model.cost import count_cell
from harness.processes import now, process_identity
from harness.runs import provenance
from harness.runs.cellruns import CellRun, cell_runs, owed_evaluations
from harness.runs.log import TrainLog
from harness.runs.study import Study
from harness.training.checkpoint import save
from harness.training.conditions import numeric_conditions
from harness.training.loop import LOG_ROWS
from sweeps.grid import load_sweep
from tests.records import write_record


def finished_study(sweep_file: Path, results: Path) -> None:
    """Finish every cell of a sweep on digits, with losses and distances that fall as power laws of compute."""
    sweep = load_sweep(sweep_file)
    study = Study(results, sweep.study)
    items = cell_runs(sweep, study)
    study.save_sweep(sweep.path, {item.cell.id: item.name for item in items})
    png = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(png, "PNG")
    with patch("harness.files.fsync"):  # nothing of it has to outlive a power cut
        for item in items:
            _finish(item, png.getvalue())


def _finish(item: CellRun, picture: bytes) -> None:
    run, cell, cost = item.run, item.cell, count_cell(item.cell)
    noise = np.random.default_rng(int(cell.id, 16)).normal(0, 0.03)
    conditions = {**numeric_conditions(1, 250, "cpu"), "ranks": 1, "micro_batch": None, "compile": "off"}
    run.write_cell(item.name, cell)
    hold = run.claim(1, {"process": process_identity(), "time": now(), "study": item.study, "executor": "local"})
    assert hold is not None
    about = {"process": process_identity(), "conditions": conditions, "gemm_tflops": 0.05}
    run.record(1, "submitted", {"process": process_identity(), "time": now(), "job_id": "1", "token": hold.token})
    hold.record("started", {**about, "time": now(), **provenance.environment()})
    last, rows = cell.training.steps, []
    for number in range(1, LOG_ROWS + 1):
        step = max(1, last * number // LOG_ROWS)
        loss = 0.9 * (cost.macs * step) ** -0.05 * float(np.exp(noise))
        rows.append({"step": step, "loss": loss, "seconds": 0.01 * step})
        if number in (LOG_ROWS // 4, LOG_ROWS // 2, LOG_ROWS):
            rows.append({"step": step, "loss_train": loss, "loss_heldout": 1.05 * loss})
    TrainLog(run).rewrite(rows)
    save(run.weights_file(last), {"w": torch.zeros(8)}, {"cell": cell.id, "step": last, "draws": DRAWS})
    weights = run.weights_checksum(last)
    for number, (evaluation, step) in enumerate(owed_evaluations(cell, item.evaluations).values()):
        distance = 3e3 * (cost.macs * step) ** -0.3 * float(np.exp(noise)) + 1
        metrics = {
            "samples": evaluation.samples, "extractor": "digits-cnn@dfd27a5b",
            "reference": "digits/train(1500)@634488df", "frechet": distance, "frechet_mean_term": distance / 2,
            "frechet_cov_term": distance / 2, "frechet_bias": 0.1, "frechet_infinity": 0.9 * distance,
            "frechet_infinity_se": 0.1, "frechet_folds_mean": 1.2 * distance, "frechet_folds_sd": 0.1,
            "frechet_fold_samples": evaluation.samples // 5, "frechet_floor": 0.5, "frechet_train": distance,
            "frechet_heldout": 1.1 * distance, "kid": distance / 100, "precision": 0.8, "recall": 0.6,
            "inception_score": 7.0, "nearest_ratio": 0.8, "copies": 0.0,
            "nested": [
                {"samples": evaluation.samples * part // 10, "frechet": distance * (1 + 1 / part)}
                for part in range(1, 11)
            ],
        }  # fmt: skip
        key = write_record(
            run, cell, evaluation, step, metrics=metrics, weights=weights, params=cost.params, macs=cost.macs,
            draws=DRAWS, conditions=conditions, packages=provenance.packages(), seconds=12.5,
        )  # fmt: skip
        if number == 0:
            write_bytes(run.grid_file(key), picture)
    hold.record("ended", {"outcome": "done", "message": "", "time": now()})
