"""Train some cells of a finished study again, in a folder of their own, and say whether the numbers are the same.

`python -m tests.again sweeps/NAME.toml --cells 3 --seed 0`: the study's tables are in results/NAME, its runs need not
be. On the same kind of machine all numbers are the same, bit for bit; otherwise hold the largest difference against the
study's noise.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from sweeps.grid import load_sweep

#: What tells one row of a table from the others of its cell.
_KEYS = ["cell", "step", "evaluation", "extractor", "reference", "sampling_seed", "row"]

#: What is compared, by file: the losses of the log, and what was measured of the samples.
_VALUES = {
    "curves.csv": ["loss", "loss_train", "loss_heldout"],
    "results.csv": ["loss_train", "loss_heldout", "frechet", "frechet_infinity", "kid", "precision", "recall"],
}


def compare(study: Path, again: Path, cells: list[str]) -> list[str]:
    """One line a cell and value: the same, or the largest relative difference.

    Args:
        study: folder of the tables.
        again: folder of the tables of the second training.
        cells: their ids.
    """
    lines = []
    for file, columns in _VALUES.items():
        first, second = (_table(folder / file) for folder in (study, again))
        keys = [key for key in first if key in _KEYS]
        for cell in cells:
            mine, other = (table[table["cell"] == cell].set_index(keys) for table in (first, second))
            if mine.empty or set(mine.index) != set(other.index):
                lines.append(f"{cell} {file}: the rows differ: {len(mine)} before, {len(other)} now")
                continue
            other = other.loc[mine.index]
            for column in columns:
                off = ((other[column] - mine[column]).abs() / mine[column].abs()).max()
                same = other[column].equals(mine[column])
                lines.append(f"{cell} {file} {column}: {'the same' if same else f'differs by up to {off:.3g}'}")
    return lines


def _table(path: Path) -> pd.DataFrame:
    """A table, in which rows of one step are numbered: a log has several."""
    table = pd.read_csv(path, dtype={"cell": str})
    return table.assign(row=table.groupby([key for key in table if key in _KEYS]).cumcount())


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where all is the same, otherwise 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the study's sweep file")
    parser.add_argument("--cells", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="chooses them (default: 0)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the study's tables are")
    given = parser.parse_args(arguments)
    sweep = load_sweep(given.sweep)
    chosen = sorted(random.Random(given.seed).sample(sorted(sweep.cells()), given.cells))
    with tempfile.TemporaryDirectory() as folder:
        judges = given.results / "_extractors"
        if judges.is_dir():  # trained on another kind of machine, they would judge otherwise
            shutil.copytree(judges, Path(folder) / "_extractors")
        some = [part for name, _ in chosen for part in ("--cell", name)]
        command = [sys.executable, "-m", "harness.cli", "launch", str(given.sweep), "--results", folder, *some]
        subprocess.run(command, check=True)  # it writes the tables, too
        names = {cell.id: name for name, cell in chosen}
        lines = compare(given.results / sweep.study, Path(folder) / sweep.study, list(names))
    for line in lines:
        cell, rest = line.split(" ", 1)
        print(f"{names[cell]} {rest}")
    return 0 if all(line.endswith("the same") for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
