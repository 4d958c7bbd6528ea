"""Files of the user's own: what they define is known by name, and their content is part of the ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.spec.extension import Extension
from harness.spec.identity import canonical_json
from harness.spec.model import BLOCKS, DiTSpec
from sweeps.grid import load_sweep

FILE = "BLOCKS = {'mine': object}\n"
SWEEP = (
    'extend = ["mine.py"]\n[grid]\ndepth = [1]\nblock = ["adaln-zero", "mine"]\n[model]\nwidth = 8\npatch_size = 4\n'
)


pytestmark = pytest.mark.usefixtures("users_files")


def test_what_a_file_defines_is_used_by_name_and_its_content_is_part_of_the_id(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "mine.py").write_text(FILE)
    built_in, mine = (cell for _, cell in load_sweep(tmp_path / "s.toml").cells())
    assert BLOCKS.load("mine") is object
    assert "#" not in canonical_json(built_in)
    assert f'"block":"mine#{Extension("mine.py", FILE).content_hash}"' in canonical_json(mine)
    before = [built_in.id, mine.id]
    (tmp_path / "mine.py").write_text(FILE + "# other content\n")
    again = [cell.id for _, cell in load_sweep(tmp_path / "s.toml").cells()]
    assert again[0] == before[0]
    assert again[1] != before[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("BLOCKS = {'adaln': object}", "extend: mine.py: BLOCKS: 'adaln' is built in; choose another name"),
        ("DATA_SETS = {'mine': object}", "extend: mine.py: DATA_SETS: 'mine' lacks shape, extractor, needs, images"),
        ("EXTRACTORS = {'mine': object}", "extend: mine.py: EXTRACTORS: 'mine' lacks channels, size, dims, references"),
        ("x = 1", "extend: mine.py defines nothing; allowed: a dict named BLOCKS, DATA_SETS"),
        ("BLOCKS = {}", "extend: mine.py defines nothing; allowed: a dict named BLOCKS, DATA_SETS"),
        ("x = 1\nraise RuntimeError('no')", "extend: mine.py, line 2: RuntimeError: no"),
        ("x = 1\ny = (", "extend: mine.py, line 2: SyntaxError: "),
        ("import no_such_package", "extend: mine.py, line 1: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError) as raised:
        load_sweep(tmp_path / "s.toml")
    assert problem in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 's.toml'}: ")
    assert "mine" not in BLOCKS.names


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('extend = "mine.py"', "extend: should be a list of Python files"),
        ('extend = ["mine.toml"]', "extend: should be a list of Python files"),
        ('extend = ["../mine.py"]', "allowed: files below the sweep file's folder"),
        ('extend = ["/mine.py"]', "allowed: files below the sweep file's folder"),
        ('extend = ["none.py"]', "none.py cannot be read"),
    ],
)
def test_a_bad_name_is_one_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "s.toml").write_text(SWEEP.replace('extend = ["mine.py"]', line))
    with pytest.raises(InputError, match=problem):
        load_sweep(tmp_path / "s.toml")


def test_a_name_of_no_file_says_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"Input should be 'in-context', 'cross-attention', .* or 'adaln-gate'"):
        DiTSpec.model_validate({"depth": 1, "width": 8, "patch_size": 4, "block": "mine"})
