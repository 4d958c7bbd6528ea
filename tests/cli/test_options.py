"""Options that are fields of specs: what is offered, how a wrong value ends, and what the list of verbs loads."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.spec.fields import fields_of
from harness.spec.resources import Resources

SWEEP = """
[grid]
depth = [1]
[model]
width = 8
patch_size = 4
[resources]
ranks = 2
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "0"], "command line, resources.time: should be greater than 0 (got 0)"),
        (["--slots", "0"], "command line, resources.slots: should be greater than 0 (got 0)"),
        (["--gpus", "-1"], "command line, resources.gpus: should be greater than or equal to 0 (got -1)"),
        (["--executor", "moon"], "command line, resources.executor: should be 'local' or 'slurm' (got 'moon')"),
        (["--cells-per-gpu", "2"], "command line, resources: cells_per_gpu 2 is for cells of one process"),
    ],
)
def test_a_wrong_value_is_one_line_of_the_spec(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(SWEEP)
    for verb in ("launch", "evaluate"):
        assert run(monkeypatch, verb, "s.toml", *options) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_help_says_what_the_fields_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for _ in range(2):  # the second time, too, though options are made when a verb is first asked for
        assert run(monkeypatch, "launch", "--help") == 0
        shown = capsys.readouterr().out
        known = fields_of(Resources)
        for name in ("slots", "ranks", "partition", "time", "mem_gb"):
            assert f"--{name.replace('_', '-')} " in shown
            assert known[name].help[1:].replace("`ranks`", "--ranks") in shown
        assert "--download " in shown
        assert "(allowed: local, slurm)" in shown


def test_the_list_of_verbs_loads_no_spec() -> None:
    code = (
        "import sys; from harness.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'pydantic', 'harness.spec.resources'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert re.fullmatch(r"dit-harness \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_live_table_is_not_wide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(SWEEP)
    assert run(monkeypatch, "status", "s.toml", "--watch", "--wide") == 2
    assert capsys.readouterr().err == "error: --watch, --json, --wide: allowed: one of them\n"


def test_paragraphs_of_a_help_break_at_the_width_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run(monkeypatch, "launch", "--help")
    text = capsys.readouterr().out.partition("Arguments")[0]
    lines = [line.strip() for line in text.splitlines()]
    followed = [line for line, after in itertools.pairwise(lines) if line and after]
    assert followed
    assert min(map(len, followed)) > 60, "only the last line of a paragraph is short"
