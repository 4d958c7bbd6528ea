"""What the commands cost on large studies, one of them with stand-ins of Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.pairs import seconds
from tests.bench.study import finished_study


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
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

        def command(*arguments: str) -> Callable[[], object]:
            whole = [sys.executable, "-m", "harness.cli", arguments[0], "big.toml", *arguments[1:]]
            return lambda: subprocess.run(whole, cwd=folder, env=environment, check=True, capture_output=True)

        return [
            ("status, 1,000 cells, nothing started", f"{seconds(command('status')):.1f} s"),
            ("plan, 1,000 cells, nothing started", f"{seconds(command('plan')):.1f} s"),
            ("launch, 1,000 cells on Slurm, submitted", f"{seconds(command('launch', '--executor', 'slurm')):.1f} s"),
            ("status, 1,000 cells, all queued", f"{seconds(command('status')):.1f} s"),
        ]


def large_studies() -> list[tuple[str, str]]:
    """Wall time of plan and status by the number of cells, and of the commands that read 2,000 finished cells."""
    many = f"depth = {[*range(1, 11)]}\nwidth = {[*range(16, 161, 16)]}\npatch_size = [4, 2]\n"
    grids = {
        100: "depth = [2, 4]\nwidth = [32, 64, 96, 128, 160]\npatch_size = [4, 2]\nseed = [0, 1, 2, 3, 4]",
        2_000: f"{many}seed = {[*range(10)]}",
        10_000: f"{many}learning_rate = [1e-4, 3e-4]\nseed = {[*range(25)]}",
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def timed(verb: str, cells: int, state: str) -> tuple[str, str]:
            command = [sys.executable, "-m", "harness.cli", verb, f"s{cells}.toml"]
            took = seconds(
                lambda: subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            )
            return f"{verb}, {cells:,} cells, {state}", f"{took:.1f} s"

        for cells, grid in grids.items():
            (folder / f"s{cells}.toml").write_text(
                f"[grid]\n{grid}\n[training]\nsteps = 1000\nbatch_size = 64\nema_window = 0.1\n"
                '[[evaluation]]\nsamples = 1500\nsampler = "ddim"\nsampling_steps = 50\n'
            )
        found = [timed(verb, cells, "nothing started") for cells in (100, 10_000) for verb in ("plan", "status")]
        finished_study(folder / "s2000.toml", folder / "results")
        return found + [timed(verb, 2_000, "all done") for verb in ("status", "collect", "report")]
