"""A job that stalls, is taken over, or loses its folder never changes what the next owner wrote; real processes."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.processes import HeldError, exclusive, is_alive, process_identity, unseen
from harness.runs.claims import Hold, SupersededError
from harness.runs.log import TrainLog
from harness.runs.state import Run, State
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec

CELL = Cell(model=DiTSpec(depth=1, width=8, patch_size=4))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "results" / "runs" / CELL.id)


def claimed(run: Run, number: int = 1) -> Hold:
    hold = run.claim(number, {"process": process_identity()})
    assert hold is not None
    return hold


def append(hold: Hold, run: Run) -> None:
    with hold.writing():
        TrainLog(run).append({"step": hold.number, "loss": 1.0})


def rewrite(hold: Hold, run: Run) -> None:
    with hold.writing():
        TrainLog(run).rewrite([{"step": 9, "loss": 1.0}])


def progress(hold: Hold, run: Run) -> None:
    with hold.writing():
        run.write_progress({"stage": "train"})


def end(hold: Hold, run: Run) -> None:
    hold.record("ended", {"outcome": "done"})


WRITES = [append, rewrite, progress, end]


@contextmanager
def stopped(work: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """A process that stops itself somewhere in `work`; what is given lets it go on, and tells its exit code.

    0: it did its work. 3: it found itself superseded.
    """
    if (child := os.fork()) == 0:
        code = 70
        try:
            work()
            code = 0
        except SupersededError:
            code = 3
        finally:
            os._exit(code)
    os.waitpid(child, os.WUNTRACED)

    def go_on() -> int:
        os.kill(child, signal.SIGCONT)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    try:
        yield go_on
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def stall() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("write", WRITES)
def test_one_that_stalls_before_a_write_changes_nothing_after_a_takeover(run: Run, write: Callable[..., None]) -> None:
    hold = claimed(run)

    def work() -> None:
        append(hold, run)
        stall()
        write(hold, run)

    with stopped(work) as go_on:
        append(claimed(run, 2), run)
        before = everything(run.folder)
        assert go_on() == 3
        assert everything(run.folder) == before
    assert [row["step"] for row in TrainLog(run).rows()] == [1, 2]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("gone", ["runs/{}", "runs", ""])
def test_one_whose_folder_is_removed_changes_nothing(run: Run, write: Callable[..., None], gone: str) -> None:
    hold, results = claimed(run), run.folder.parents[1]

    def work() -> None:
        stall()
        write(hold, run)

    with stopped(work) as go_on:
        shutil.rmtree(results / gone.format(CELL.id))
        if gone:
            append(claimed(run), run)
        before = everything(results)
        assert go_on() == 3
        assert everything(results) == before
    assert results.exists() == bool(gone), "it does not make the folder anew either"


@pytest.mark.parametrize("remove", [False, True], ids=["taken over", "removed"])
def test_nobody_claims_while_one_stalls_in_a_write(run: Run, remove: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runs.claims.PATIENCE_SECONDS", 0.1)
    hold = claimed(run)

    def work() -> None:
        with hold.writing():
            stall()
            TrainLog(run).append({"step": 1, "loss": 1.0})

    with stopped(work) as go_on:
        if remove:
            shutil.rmtree(run.folder)
            run.folder.mkdir()
        number = 1 if remove else 2
        with pytest.raises(HeldError, match=r"process \d+ on "):
            run.claim(number, {})
        assert not run.attempt_file(number).exists()
        assert go_on() == 0
    assert run.claim(number, {}) is not None


def test_threads_write_together_and_let_go_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runs.claims.PATIENCE_SECONDS", 0.1)
    hold, inside, leave = claimed(run), threading.Event(), threading.Event()

    def long() -> None:
        with hold.writing():
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=long)
    thread.start()
    assert inside.wait(60)
    for _ in range(2):
        append(hold, run)
    with pytest.raises(HeldError):
        run.claim(2, {})
    leave.set()
    thread.join()
    assert run.claim(2, {}) is not None
    with pytest.raises(SupersededError):
        append(hold, run)


def test_a_killed_one_lets_go(run: Run) -> None:
    hold = claimed(run)

    def work() -> None:
        with hold.writing():
            stall()

    with stopped(work):
        pass
    assert run.claim(2, {}) is not None


@pytest.mark.parametrize("event", ["submitted", "started", "ended", "cancelled"])
def test_an_event_of_another_claim_with_the_number_does_not_count(run: Run, event: str) -> None:
    old = claimed(run)
    shutil.rmtree(run.folder)
    claimed(run)
    run.record(1, event, {"outcome": "done", "process": process_identity(), "token": old.token})
    assert getattr(run.attempt(1), event) is None
    assert run.state(["owed@1"], 1).state is State.QUEUED


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_claims_need_no_hard_links(run: Run, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    with ThreadPoolExecutor(8) as pool:
        won = [hold for hold in pool.map(lambda _: run.claim(1, {"process": process_identity()}), range(16)) if hold]
    assert len(won) == 1
    with won[0].writing():
        assert run.attempt(1).live


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_file_locks_the_token_still_decides(
    run: Run, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    first = claimed(run)
    append(first, run)
    claimed(run, 2)
    with pytest.raises(SupersededError):
        append(first, run)
    assert "no file locks" in caplog.text


def test_a_half_written_claim_lives_by_its_age(run: Run) -> None:
    run.attempts_folder.mkdir(parents=True)
    run.attempt_file(1).write_text("{")
    assert run.state(["owed@1"], 1).state is State.QUEUED
    os.utime(run.attempt_file(1), (0, 0))
    assert run.state(["owed@1"], 1).state is State.INTERRUPTED


def seen_from(flags: int, become: Callable[[], None], identity: dict[str, Any]) -> str:
    """What `is_alive` and `unseen` answer in other namespaces of Linux; skips where none can be made."""
    libc = ctypes.CDLL(None, use_errno=True)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if libc.unshare(flags) or libc.mount(b"none", b"/", None, 0x44000, None):  # MS_REC | MS_PRIVATE
                os.write(write, b"skip")
                os._exit(0)
            if (inner := os.fork()) == 0:  # a new PID namespace begins with the next process
                become()
                os.write(write, f"{is_alive(identity)}: {unseen(identity)}".encode())
                os._exit(0)
            os.waitpid(inner, 0)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    answer = os.read(read, 1000).decode()
    if answer == "skip":
        pytest.skip("no namespaces can be made here")
    return answer


def mount_proc(options: bytes) -> None:
    ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", 0, options)


NEW_MOUNTS, NEW_PIDS = 0x00020000, 0x20000000


def test_another_pid_namespace_is_not_death() -> None:
    answer = seen_from(NEW_MOUNTS | NEW_PIDS, lambda: mount_proc(b""), process_identity())
    assert answer == "None: in another PID namespace (a container)"


def behind_hidden_proc() -> None:
    """Become a user to whom /proc does not show the processes of others."""
    mount_proc(b"hidepid=2")
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def test_a_hidden_proc_is_not_death() -> None:
    assert (
        seen_from(NEW_MOUNTS, behind_hidden_proc, process_identity())
        == f"None: behind a /proc that hides process {os.getpid()}"
    )


def test_no_proc_at_all_is_not_death() -> None:
    def become() -> None:
        ctypes.CDLL(None).mount(b"none", b"/proc", b"tmpfs", 0, None)

    assert seen_from(NEW_MOUNTS, become, process_identity()).startswith("None: ")


def test_the_dead_are_dead_behind_a_hidden_proc_too() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    identity = process_identity(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert seen_from(NEW_MOUNTS, behind_hidden_proc, identity) == "False: "


def test_a_folder_that_is_removed_stays_held(tmp_path: Path) -> None:
    folder = tmp_path / "_vae" / "digits-0"

    def work() -> None:
        with exclusive(folder, "train-vae"):
            stall()

    with stopped(work) as go_on:
        shutil.rmtree(folder)
        with pytest.raises(HeldError, match=r"train-vae, process \d+ on .*, is at work on it"), exclusive(folder, "x"):
            raise AssertionError
        assert go_on() == 0
    with exclusive(folder, "x"):
        assert folder.is_dir()
