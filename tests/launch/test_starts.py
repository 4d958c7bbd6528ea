"""What fails before a job begins, signals while it begins, and a GPU that torch does not see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CellFailedError, InputError
from harness.launch import prepare
from harness.launch.job import Job
from harness.launch.machine import own_device
from harness.launch.work import device_of
from harness.runs.attempts import Attempt
from harness.runs.state import Run
from harness.runs.study import Study
from harness.runs.triage import Cause, cause_of
from harness.runs.words import last_words
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec
from harness.spec.resources import Recording, Resources
from harness.training.ranks import Ranks
from tests.commands import ROOT
from tests.small_study import Bench, sweep_text, wait_for

CELL = Cell(model=DiTSpec(depth=1, width=16, patch_size=4))


def launched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Attempt, str]:
    """Launch the only cell, before Python's own modules those of the folder `first`; stderr, last attempt, log."""
    popen = subprocess.Popen

    def start(command: list[str], env: dict[str, str], **more: Any) -> subprocess.Popen[str]:
        path = os.pathsep.join((str(bench.folder / "first"), str(ROOT)))
        # -P: as `dit-harness`, it does not import from the working directory
        return popen([command[0], "-P", *command[1:]], env={**env, "PYTHONPATH": path}, **more)

    monkeypatch.setattr(subprocess, "Popen", start)
    launcher = bench.start("launch", str(bench.sweep))
    _, stderr = launcher.communicate(timeout=240)
    assert launcher.returncode == 1, stderr
    run = Run(next((bench.study.parent / "runs").glob("[!.]*")))
    attempt = run.newest_attempt()
    assert attempt is not None
    return stderr, attempt, run.log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "first").mkdir()
    return Bench(tmp_path, sweep_text("depth = [1]"))


def test_torch_that_does_not_import(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "first" / "torch.py").write_text("raise ImportError('libtorch.so: file too short')")
    (bench.folder / "queue.py").write_text("raise SystemExit('in place of a module of Python')")
    stderr, attempt, log = launched(bench, monkeypatch)
    assert "ImportError: libtorch.so: file too short" in stderr
    assert attempt.number == 1, "it would end in the same way"
    assert cause_of(attempt) == Cause.CODE
    assert "torch.py" in log


def test_what_unpickles_a_job_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "first" / "sitecustomize.py").write_text(
        "import sys\nif 'submitit.core._submit' in sys.orig_argv:\n    sys.modules['psutil'] = None\n"
    )
    stderr, attempt, log = launched(bench, monkeypatch)
    assert "attempt 1 ended before it began: ModuleNotFoundError: import of psutil halted" in stderr
    assert attempt.number == 1
    assert cause_of(attempt) == Cause.START
    assert attempt.ended is not None
    assert "psutil" in attempt.ended["traceback"][-1]
    assert "processes.py" in log


def test_words_of_a_process_that_python_does_not_survive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "first" / "sitecustomize.py").write_text(
        "import os, sys\nif 'submitit.core._submit' in sys.orig_argv:\n"
        "    os.write(2, b'mmap: Cannot allocate memory\\n')\n    os._exit(127)\n"
    )
    stderr, attempt, log = launched(bench, monkeypatch)
    assert f"attempt {attempt.number} ended before it began: mmap: Cannot allocate memory" in stderr
    assert attempt.number == 3, "it may have been killed, and is started again"
    assert cause_of(attempt) == Cause.MEMORY
    assert log.count("mmap: Cannot allocate memory") == 2 * 3


def test_submitits_own_lines_are_no_words(tmp_path: Path) -> None:
    (tmp_path / "7_0_log.out").write_text("submitit INFO (2026) - Loading pickle\n\n")
    assert not last_words(tmp_path, "7").lines
    (tmp_path / "7_1_log.out").write_text('Traceback (most recent call last):\n  File "a.py", line 3\nValueError: no\n')
    found = last_words(tmp_path, "7")
    assert (str(found), found.raised) == ("ValueError: no (a.py:3)", True)


_STARTS = """
import os, signal, subprocess, sys, time
from harness.launch.signals import held
child = "import sys, time; print('up', flush=True); time.sleep(0.5)\\n"
child += "from harness.launch.signals import StopFlag; s = StopFlag(); print(s.is_set(), flush=True)"
try:
    with held():
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        os.kill(os.getpid(), signal.SIGINT)
        process.send_signal(signal.{name})
        time.sleep(0.1)
        print("not yet", flush=True)
except KeyboardInterrupt:
    print("then", process.communicate()[0].strip())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_no_signal_is_lost_between_a_start_and_its_handler(name: str) -> None:
    command = [sys.executable, "-c", _STARTS.format(name=name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n")[:2] == ["not yet", "then True"]


def test_the_end_of_the_terminal_lets_cells_write_a_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sweep_text("depth = [1]", steps=100_000, checkpoint=1e6))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "launch", str(bench.sweep)],
        cwd=bench.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )
    assert launcher.stdout is not None
    wait_for(lambda: list(bench.study.parent.glob("runs/*/progress.json")))
    launcher.stdout.close()  # nothing can be printed any more
    os.killpg(launcher.pid, signal.SIGHUP)
    os.killpg(launcher.pid, signal.SIGHUP)  # the kernel sends one, the shell another
    assert launcher.wait(60) == 130
    assert bench.is_training()
    assert [row["state"] for row in bench.status().values()] == ["interrupted"]


def test_a_gpu_that_torch_does_not_see_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(resources: Resources, gpu: str | None, seen: int) -> str:
        monkeypatch.setattr("torch.cuda.is_available", lambda: seen > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
        return device_of(Job("f", 1, "", "s", CELL, (), Recording(), resources, gpu=gpu), Ranks())

    assert device(Resources(), None, 0) == "cpu"
    with pytest.raises(CellFailedError, match="GPU GPU-0000, and torch sees no GPU"):
        device(Resources(), "GPU-0000", 0)
    with pytest.raises(CellFailedError, match="GPU 0,GPU-0000, and torch sees 1 of 2 GPUs"):
        device(Resources(ranks=2), "0,GPU-0000", 1)
    with pytest.raises(CellFailedError, match="cuda, and torch sees no GPU"):
        device(Resources(device="cuda"), None, 0)


def test_nor_is_it_for_what_comes_before_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.grid import load_sweep

    (tmp_path / "s.toml").write_text(sweep_text(more='[data.vae]\nkind = "trained"\nfactor = 2\nchannels = 2'))
    (latent,) = prepare.latent_data(load_sweep(tmp_path / "s.toml"), Study(tmp_path, "s"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0000")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="gives GPU GPU-0000, and torch sees none"):
        own_device(latent.resources, latent.sweep)
