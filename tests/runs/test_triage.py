"""Why attempts failed: causes of real errors, of lost jobs, and their summary."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import torch

from harness.errors import CellFailedError, DiskFullError, InputError, NonFiniteError
from harness.runs.attempts import Attempt, Seen
from harness.runs.records import Claim, Ended
from harness.runs.triage import Cause, Trouble, cause_of, classify, describe, group


def caught(action: Any) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011 - any error is to be classified
        action()
    return info.value


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), Cause.MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Cause.MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Cause.MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), Cause.MEMORY),
        (NonFiniteError("the loss became nan at step 3"), Cause.NON_FINITE),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Cause.DISK),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), Cause.DISK),
        (
            OSError("x.safetensors: Error while serializing: I/O error: No space left on device (os error 28)"),
            Cause.DISK,
        ),
        (DiskFullError("f: cannot be written"), Cause.DISK),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Cause.NODE),
        (OSError(errno.EIO, os.strerror(errno.EIO)), Cause.NODE),
        (CellFailedError("resources.device is cuda, and torch sees no GPU here"), Cause.NODE),
        (InputError("data_folder: no such folder"), Cause.INPUT),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), Cause.INPUT),
        (KeyError("width"), Cause.CODE),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Cause.CODE),
        (ValueError("a memory"), Cause.CODE),
    ],
)
def test_an_error_tells_its_cause(error: BaseException, cause: Cause) -> None:
    assert classify(error) is cause


def test_a_real_allocation_that_fails_is_out_of_memory() -> None:
    assert classify(caught(lambda: torch.empty(2**55))) is Cause.MEMORY


def test_a_fault_in_the_code_names_file_and_line() -> None:
    from harness.diffusion.schedule import Schedule

    told = describe(caught(lambda: Schedule.of(None)))  # type: ignore[arg-type]
    assert told["cause"] == "code"
    assert told["where"].startswith("AttributeError at harness/diffusion/schedule.py:")
    assert told["traceback"][-1].startswith("AttributeError: ")
    assert describe(InputError("x")) == {"cause": "bad input"}


def attempt(ended: Ended | None = None, host: str | None = None, word: str = "") -> Attempt:
    claim: Claim = {"process": {"host": host} if host else {}}
    return Attempt(1, claim, None, None, ended, 1e9, None, Seen(False, word) if word else None)


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (attempt({"outcome": "failed", "cause": "disk"}), Cause.DISK),
        (attempt({"outcome": "failed", "cause": "of a later version"}), None),
        (attempt({"outcome": "failed", "cause": "non-finite"}), Cause.NON_FINITE),
        (attempt({"outcome": "failed", "cause": "non-finite loss"}), Cause.NON_FINITE),  # of an older version
        (attempt({"outcome": "failed"}), None),
        (attempt({"outcome": "done"}), None),
        (attempt({"outcome": "stopped"}), None),
        (attempt(word="OUT_OF_MEMORY"), Cause.MEMORY),
        (attempt(word="TIMEOUT"), Cause.TIME),
        (attempt(word="NODE_FAIL"), Cause.NODE),
        (attempt(word="FAILED"), Cause.LOST),
        (attempt(), Cause.LOST),
        (attempt(host="elsewhere"), Cause.NODE),
    ],
)
def test_an_attempt_tells_its_cause(found: Attempt, cause: Cause | None) -> None:
    assert cause_of(found) is cause


def test_failures_are_grouped_by_cause_and_line() -> None:
    def failed(cause: str, where: str = "") -> Attempt:
        return attempt({"outcome": "failed", "cause": cause, "where": where})

    troubles = group(
        [
            ("a", failed("code", "KeyError at harness/x.py:1"), "KeyError: 'k'"),
            ("b", failed("non-finite loss"), "the loss became\nnan at step 3"),
            ("c", failed("code", "KeyError at harness/x.py:2"), "KeyError: 'k'"),
            ("d", attempt({"outcome": "done"}), ""),
            *((f"e{i}", failed("non-finite"), "later") for i in range(4)),
        ]
    )
    assert [(t.cause, len(t.cells)) for t in troubles] == [(Cause.NON_FINITE, 5), (Cause.CODE, 1), (Cause.CODE, 1)]
    line = str(troubles[0])
    assert line.startswith("5 cells: non-finite (b, e0, e1 and 2 more): the loss became nan at step 3 -> lower")
    assert str(troubles[1]).startswith("1 cell: code, KeyError at harness/x.py:1 (a): KeyError: 'k' -> mend the code")


def test_every_cause_has_advice() -> None:
    for cause in Cause:
        assert " -> " in str(Trouble(cause, "", ["a"], "m"))
