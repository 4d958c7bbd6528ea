"""What the commands cost on a study of 1,000 cells, with stand-ins of Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.pairs import seconds


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
            ("status, nothing started", f"{seconds(command('status')):.1f} s"),
            ("plan", f"{seconds(command('plan')):.1f} s"),
            ("launch on Slurm, which submits them", f"{seconds(command('launch', '--executor', 'slurm')):.1f} s"),
            ("status, all queued", f"{seconds(command('status')):.1f} s"),
        ]
