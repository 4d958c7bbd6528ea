"""The commands of the docs that take seconds are run: every block of shell after `<!-- run -->`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import ROOT, run_here

BLOCK = re.compile(r"<!-- (run|file: (?P<file>[\w./-]+)) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "<!-- run -->" in page.read_text()]


def test_there_are_such_pages() -> None:
    assert {"quickstart.md", "paper.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    for block in BLOCK.finditer(page.read_text()):
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["text"])
            continue
        for line in block["text"].splitlines():
            command = shlex.split(line, comments=True)
            assert command[0] == "dit-harness", line
            done = run_here(tmp_path, *command[1:])
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
