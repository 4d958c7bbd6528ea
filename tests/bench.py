"""`make bench`: what costs how much, as ratios measured side by side in one run (A B A B ...), with their spread.

Decides no test: machines are shared and noisy. On a machine with a GPU the training rows use it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from rich.console import Console
from rich.table import Table

from harness.data.batches import batches
from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.evaluation.frechet import frechet_distance
from harness.model.cost import count
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.resources import Recording
from harness.training.loop import Options, Trainer
from harness.training.ranks import Ranks
from harness.training.state import TrainState

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def side_by_side(a: Callable[[], object], b: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float, str]:
    """Median times of a and b, and the ratio b / a pair by pair as median (min to max); one warm-up each."""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(rounds)]
    ratios = sorted(y / x for x, y in pairs)
    text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs), text


def sqrtm_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Compute the Frechet distance by scipy's matrix square root, as most FID code does."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1 + sigma2) - 2 * np.trace(root.real))


def frechet_row(dims: int) -> tuple[str, ...]:
    """Ours against scipy's square root on random covariances of full rank."""
    generator = np.random.default_rng(0)
    stats = []
    for _ in range(2):
        x = generator.standard_normal((2 * dims, dims)) * np.linspace(0.1, 2, dims)
        stats += [x.mean(0), np.cov(x, rowvar=False)]
    ours, theirs, ratio = side_by_side(
        lambda: frechet_distance(*stats), lambda: sqrtm_distance(*stats), rounds=2 if dims > 1000 else ROUNDS
    )
    return f"Frechet distance, d = {dims}", "eigh", "scipy sqrtm", f"{ours:.3f} s", f"{theirs:.3f} s", ratio


def steps(spec: dict[str, object], dataset: LoadedData, device: str, repeat: int = 10) -> Callable[[], object]:
    """`repeat` training steps of a cell."""
    cell = Cell.model_validate(spec)
    state = TrainState.initial(cell, device)
    options = Options(device, [], Recording(), checkpoint_seconds=1e9)
    trainer = Trainer(state, cell, batches(dataset, device).train, options, Ranks())

    def work() -> None:
        for _ in range(repeat):
            trainer.step()

    return work


def training_rows(device: str) -> list[tuple[str, ...]]:
    """Blocks against adaLN-Zero, and bf16 against fp32."""
    dataset = load(Data())
    shape = {"depth": 4, "width": 64, "heads": 4, "patch_size": 2}
    recipe: dict[str, object] = {"batch_size": 64}
    base: dict[str, object] = {"model": shape, "training": recipe}
    rows: list[tuple[str, ...]] = []
    for block in ("adaln", "cross-attention", "in-context"):
        other = {**base, "model": {**shape, "block": block}}
        a, b, ratio = side_by_side(steps(base, dataset, device), steps(other, dataset, device))
        macs = [count(Cell.model_validate(s).model, Data().shape).macs for s in (base, other)]
        name = f"10 training steps, d4-w64-p2 on {device} (GMACs ratio {macs[1] / macs[0]:.2f})"
        rows.append((name, "adaln-zero", block, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", ratio))
    wide = {**shape, "width": 384, "heads": 6}
    a, b, ratio = side_by_side(
        steps({"model": wide, "training": recipe}, dataset, device, 2),
        steps({"model": wide, "training": {**recipe, "precision": "bf16"}}, dataset, device, 2),
    )
    rows.append(
        (f"2 training steps, d4-w384-p2 on {device}", "fp32", "bf16", f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", ratio)
    )
    return rows


def thousand_cells() -> list[tuple[str, str]]:
    """Wall time of the commands on a study of 1,000 cells, with stand-ins of Slurm's commands (arrays of up to 100)."""
    told = {
        "scontrol": "echo MaxArraySize = 100",
        "sbatch": "n=$(($(cat n 2>/dev/null || echo 0) + 1)); echo $n | tee n | sed 's/^/Submitted batch job /'",
        "srun": "",
        "sacct": "",
        # each task of each array waits, with the token of its claim as comment; a mark stands before each field
        "squeue": "for last; do :; done; m=${last#--format=}; m=${m%%%i*}; "
        'echo "${m}JOBID${m}STATE${m}REASON${m}COMMENT${m}NAME${m}COMMAND${m}"; '
        "for f in results/big/submitit/*_submission.sh; do t=$(sed -n 's/^#SBATCH --comment=//p' $f); "
        "j=$(basename $f _submission.sh); for i in $(seq 0 99); do "
        'echo "$m${j}_$i${m}PENDING${m}Priority$m$t${m}dit-big$m$f$m"; done; done',
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, script in told.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        (folder / "big.toml").write_text(
            "[grid]\ndepth = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\nwidth = [16, 32, 48, 64, 80, 96, 112, 128, 144, 160]\n"
            "seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n[model]\npatch_size = 4\n[[evaluation]]\nsamples = 330\n"
        )
        environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

        def command(*arguments: str) -> Callable[[], object]:
            whole = [sys.executable, "-m", "harness.cli", arguments[0], "big.toml", *arguments[1:]]
            return lambda: subprocess.run(whole, cwd=folder, env=environment, check=True, capture_output=True)

        return [
            ("status, nothing started", f"{seconds(command('status')):.1f} s"),
            ("plan", f"{seconds(command('plan')):.1f} s"),
            ("launch on Slurm, which submits them", f"{seconds(command('launch', '--executor', 'slurm')):.1f} s"),
            ("status, all queued", f"{seconds(command('status')):.1f} s"),
        ]


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    table = Table(
        "what", "A", "B", "A", "B", "B / A, median (min to max)", title="Ratios of one run", title_justify="left"
    )
    for dims in (64, 2048):
        table.add_row(*frechet_row(dims))
    for row in training_rows("cuda" if torch.cuda.is_available() else "cpu"):
        table.add_row(*row)
    console = Console(width=170)
    console.print(table)
    table = Table("command", "wall time", title="A study of 1,000 cells", title_justify="left")
    for row in thousand_cells():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
