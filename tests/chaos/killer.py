"""Kill or stop this process at a write, from the outside: the harness holds no hook for it.

Python announces every file operation to audit hooks before it is done. This one gives those under a study's folder a
name such as "job state renamed", counts them, and at a chosen one sends SIGKILL to its own process, if need be after
leaving half a file behind, as a kill in the middle of a write does.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a file is called, by its path inside the results.
_KINDS = (
    (r"runs/[^/]+/(attempts|evaluating)/\d+\.json", "claim"),
    (r"runs/[^/]+/(attempts|evaluating)/\d+\.(\w+)\.json", r"\2"),
    (r"runs/[^/]+/checkpoints/state-.*", "state"),
    (r"runs/[^/]+/checkpoints/weights-.*", "weights"),
    (r"runs/[^/]+/samples/.*/part-.*", "samples"),
    (r"runs/[^/]+/samples/.*\.png", "picture"),
    (r"runs/[^/]+/evaluations/.*", "evaluation"),
    (r"runs/[^/]+/(cell|progress)\.json", r"\1"),
    (r"runs/[^/]+/train\.jsonl", "curve"),
    (r"[^/]+/samples/.*\.png", "copied picture"),
    (r"[^/]+/diffs/.*", "diff"),
    (r"[^/]+/(sweep|cells|schema|results|curves|attempts)\.\w+", r"\1"),
)

#: Written when the clock says so, not at a step, so that it would make counts irreproducible.
_UNCOUNTED = ("progress",)


def kind_of(path: str) -> str | None:
    """The kind of a file of the results, or of that which a temporary one becomes; None of others, such as the log."""
    folder, _, name = path.rpartition("/")
    if found := re.fullmatch(r"\.(.+)\.[^.]+\.tmp", name):
        name = found[1]
    path = f"{folder}/{name}" if folder else name
    for pattern, kind in _KINDS:
        if found := re.fullmatch(pattern, path):
            return found.expand(kind)
    return None


class Killer:
    """Watches the writes below `results` of this process, and of those that it forks.

    Args:
        results: the folder of studies and runs.
        decide: told the name of every write point when it is reached and how many came before it in this process;
            returns the signal that the process sends to itself there: SIGKILL or SIGSTOP; 0 for none.
    """

    def __init__(self, results: Path, decide: Callable[[str, int], int]) -> None:
        self._root = f"{results.resolve()}/"
        self._decide = decide
        self.role = "launcher"
        self.count = 0
        self._of_thread = threading.local()  # checkpoints have a thread of their own

    def watch(self) -> None:
        """Begin; there is no end, so that only a process of the test's own may do it."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        mine = self._of_thread
        if getattr(mine, "busy", False) or not event.startswith(("open", "os.")):
            return
        mine.busy = True
        try:
            if event == "open":
                self._opened(*arguments)
            elif event in ("os.rename", "os.link", "os.remove"):
                self._moved(event, *(os.fspath(a) for a in arguments[:2] if isinstance(a, (str, os.PathLike))))
        finally:
            mine.busy = False

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        inside = self._inside(path)
        if inside is None:
            return
        if flags & os.O_ACCMODE == os.O_RDONLY:
            if mode is not None:
                return  # a reader; only what is to be synced is opened without a mode
            if Path(path).is_dir():
                last = getattr(self._of_thread, "last", "")
                self._reach(f"{last} {'linked' if last == 'claim' else 'renamed'}")
            elif not inside.endswith(".tmp"):
                self._reach(f"{kind_of(inside)} not synced")
            elif kind := kind_of(inside):
                self._reach(f"{kind} half written", lambda: os.truncate(path, Path(path).stat().st_size // 2))
                self._reach(f"{kind} written")
        elif kind := kind_of(inside):
            if mode is not None and "a" in mode:
                self._reach(f"{kind} appended")
                self._reach(f"{kind} half appended", lambda: _append(path, b'{"step": 1, "lo'))
            elif flags & os.O_CREAT and flags & os.O_EXCL:
                self._reach(f"{kind} created")

    def _moved(self, event: str, source: str, target: str = "") -> None:
        inside = self._inside(target or source)
        kind = kind_of(inside) if inside is not None else None
        if kind is None:
            return
        if event == "os.remove":
            if not source.endswith(".tmp"):
                self._reach(f"{kind} removed")
            return
        self._of_thread.last = kind
        self._reach(f"{kind} synced")

    def _inside(self, path: Any) -> str | None:
        if not isinstance(path, (str, os.PathLike)):
            return None
        whole = os.path.join(os.getcwd(), os.fspath(path))  # noqa: PTH118, PTH109 - quick, and no Path is needed
        return whole.removeprefix(self._root) if whole.startswith(self._root) else None

    def _reach(self, what: str, damage: Callable[[], object] | None = None) -> None:
        counted = not what.startswith(_UNCOUNTED)
        if number := self._decide(f"{self.role} {what}", self.count if counted else -1):
            if damage is not None and number == signal.SIGKILL:
                damage()
            os.kill(os.getpid(), number)
        self.count += counted


def _append(path: Any, data: bytes) -> None:
    with open(path, "ab") as file:  # noqa: PTH123 - not to be announced under another name
        file.write(data)
