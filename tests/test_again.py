"""A cell that is trained again has the same numbers; a number that was changed is found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests import again
from tests.small_study import Bench, sweep_text


def test_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path / "study", sweep_text("depth = [1]", steps=4))
    assert bench.launch("--slots", "1").returncode == 0
    given = [str(bench.sweep), "--cells", "1", "--results", str(bench.study.parent)]
    assert again.main(given) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10
    assert all(line.endswith("the same") for line in said)

    table = pd.read_csv(bench.study / "results.csv")
    table["frechet"] *= 1.01
    table.to_csv(bench.study / "results.csv", index=False)
    itself = again.compare(bench.study, bench.study, list(table["cell"].astype(str)))
    assert len(itself) == 10
    assert all(line.endswith("the same") for line in itself)
    assert again.main(given) == 1
    odd = [line for line in capsys.readouterr().out.splitlines() if not line.endswith("the same")]
    assert len(odd) == 1
    assert "frechet: differs by up to 0.0099" in odd[0]
