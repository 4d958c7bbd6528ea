"""The page of the bench keeps what other parts have measured. What they measure is no test's business."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench import page
from tests.bench.__main__ import ORDER
from tests.bench.pairs import Told, pair


def test_a_part_is_written_in_its_place(tmp_path: Path) -> None:
    row = pair("nothing", ("a", lambda: Told(1)), ("b", lambda: Told(2)), rounds=3)
    page.write("ranks", {"rows": [row._asdict()]}, ORDER, tmp_path)
    page.write("host", {"rows": [row._asdict()]}, ORDER, tmp_path)
    page.write("commands", {"commands": [("plan", "1 s")], "notes": ["", "made up"]}, ORDER, tmp_path)
    page.write("ranks", {"rows": [row._replace(what="anew")._asdict()]}, ORDER, tmp_path)
    assert list(json.loads((tmp_path / "performance.json").read_text())) == ["host", "ranks", "commands"]
    text = (tmp_path / "performance.md").read_text()
    assert text.count("| nothing | a | b | 1000 | 2000 | 2.00 (2.00 to 2.00) |") == 1
    assert text.count("| anew | a | b |") == 1
    assert "| plan | 1 s |" in text
    assert "made up" in text
    assert "Not measured yet: training, besides, gpu, start, sampling, distance." in text


def test_a_number_that_a_work_returns_is_no_time() -> None:
    assert pair("nothing", ("a", lambda: 5.0), ("b", lambda: 5.0), rounds=1).a < 1000
