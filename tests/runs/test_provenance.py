"""Code, command, hardware and scheduler of an attempt."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.runs import provenance
from harness.runs.study import Study


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small repository with code, results and a commit."""
    folder = tmp_path.resolve() / "checkout"
    for name in ("harness/a.py", "results/r.csv"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("one\n")
    git(tmp_path, "init", "-q", str(folder))
    (folder / ".gitignore").write_text("ignored.py\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "results" / "r.csv").write_text("another result is no other code\n")
    (checkout / "harness" / "ignored.py").write_text("x\n")
    assert provenance.git_state(checkout) == (head[:12], "")


def test_the_difference_holds_changed_and_new_sources(checkout: Path) -> None:
    (checkout / "harness" / "a.py").write_text("two\n")
    (checkout / "harness" / "new.py").write_text("three\n")
    commit, diff = provenance.git_state(checkout)
    assert commit is not None
    assert commit.endswith("+")
    for line in ("-one", "+two", "+++ b/harness/new.py", "+three"):
        assert line in diff.splitlines()
    again = checkout.parent / "again"
    git(checkout.parent, "clone", "-q", str(checkout), str(again))
    subprocess.run(["git", "-C", str(again), "apply"], input=diff + "\n", text=True, check=True)
    assert (again / "harness" / "a.py").read_text() == "two\n"
    assert (again / "harness" / "new.py").read_text() == "three\n"


def test_somebody_elses_repository_or_none_says_nothing(checkout: Path, tmp_path: Path) -> None:
    assert provenance.git_state(checkout / "harness") == (None, "")
    assert provenance.git_state(tmp_path.resolve()) == (None, "")


def test_git_is_asked_once_a_launch_and_again_when_the_code_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def git_state(folder: Path) -> tuple[str, str]:
        asked.append(folder)
        return "abc+", "the difference"

    monkeypatch.setattr(provenance, "git_state", git_state)
    provenance.origin.cache_clear()
    launched, text = provenance.origin()
    assert (launched.commit, text) == ("abc+", "the difference")
    assert provenance.origin_of_job(launched) == (launched, "")
    assert len(asked) == 1
    provenance.origin.cache_clear()  # another process
    older = replace(launched, commit="old", code="another", command="dit-harness launch x.toml")
    assert provenance.origin_of_job(older) == (replace(launched, command="dit-harness launch x.toml"), text)
    assert len(asked) == 2
    provenance.origin.cache_clear()


def test_a_difference_is_kept_once_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Study(tmp_path, "s")
    folder = kept.folder
    kept.save_diff(None, "")
    assert not folder.exists()
    kept.save_diff("aa", "text")
    kept.save_diff("aa", "never written again")
    assert (folder / "diffs" / "aa.diff").read_text() == "text\n"
    monkeypatch.setattr("harness.runs.study.DIFF_CHARACTERS", 3)
    kept.save_diff("bb", "abcde")
    assert (folder / "diffs" / "bb.diff").read_text() == "abc\n... and 2 characters more\n"


def test_machine_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("SLURM_JOB_ID", "7"), ("SLURMD_NODENAME", "n1"), ("SLURM_RESTART_COUNT", "2"), ("OTHER", "x")):
        monkeypatch.setenv(key, value)
    found = provenance.environment()
    assert found["slurm"] == {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "n1"}
    assert found["machine"]["cpu"]
    assert 1 <= found["machine"]["usable_cores"] <= found["machine"]["cores"]
    assert found["machine"]["memory_gb"] > 0


def test_it_is_light() -> None:
    modules = "harness.runs.provenance, harness.runs.triage, harness.cli.follow"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
