"""What is made of squeue's and sacct's odd and broken answers; the commands are small scripts."""

from __future__ import annotations

import pytest

from harness.launch.slurm_queue import Queue
from harness.runs.attempts import Seen
from tests.launch.test_slurm import Command, command, listing, ticket

__all__ = ["command"]  # the fixture

TOKEN = "0123456789ab"

GONE = {"err": "slurm_load_jobs error: Invalid job id specified\n", "code": 1}

#: What somebody may write as a comment or a name.
ODD = ["", "x|y||", "two\nlines", "\n\n", "(null)", "naïve – ☃", "%i%T", "@@", "a" * 5000, "tab\tand \x1f \x1e"]


@pytest.mark.parametrize("words", ODD)
def test_odd_words_of_anybody_change_nothing(command: Command, words: str) -> None:
    jobs = [f"{words}|5_0|RUNNING|None", f"{TOKEN}|7_0|RUNNING|None", f"{words}|9|PENDING|a, b", "|11|FAILED|None"]
    command("squeue", listing(*jobs, name=words))
    queue = Queue("s")
    assert queue.look(ticket(TOKEN, 0)) == Seen(True, "RUNNING", "", "7_0")
    assert queue.error is None


def test_a_comment_in_another_encoding(command: Command) -> None:
    path = command("squeue", listing("caf_|5|RUNNING|None", f"{TOKEN}|7_0|RUNNING|None"))
    out = path.with_name("squeue.out")
    out.write_bytes(out.read_bytes().replace(b"caf_", b"caf\xe9"))
    assert Queue("s").look(ticket(TOKEN, 0)).alive


@pytest.mark.parametrize("comment", [*ODD, TOKEN])
@pytest.mark.parametrize("name", ["dit-s", "renamed"])
def test_a_recorded_number_counts_whatever_name_and_comment_became(command: Command, comment: str, name: str) -> None:
    command("squeue", listing(f"{comment}|7_0|RUNNING|None", name=name))
    assert Queue("s").look(ticket(TOKEN, 0, "7_0")) == Seen(True, "RUNNING", "", "7_0")


def test_a_number_that_slurm_gave_again_is_another_job(command: Command) -> None:
    command("sacct")
    for jobs in (
        listing("x|7_0|RUNNING|None", name="theirs", script="/x.sh"),
        listing("ba9876543210|7_0|RUNNING|None"),
    ):
        command("squeue", jobs)
        assert Queue("s").look(ticket(TOKEN, 0, "7_0")).alive is False


def test_a_number_that_is_not_listed_by_name_is_asked_for(command: Command) -> None:
    command("sacct")
    calls = command("squeue", listing())
    queue = Queue("s")
    assert queue.look(ticket(TOKEN, 0, "7_0")).alive is False
    assert queue.look(ticket(TOKEN, 1, "7_1")).alive is False
    assert [line.split()[3] for line in calls.read_text().splitlines()] == ["--name=dit-s", "--jobs=7"]
    assert calls.read_text().count("--all ") == 2, "hidden partitions too"
    command("squeue", **GONE)
    queue.forget()
    assert queue.look(ticket(TOKEN, 1, "7_1")) == Seen(False), "Slurm's own word for a job that ended long ago"
    assert queue.error is None


WHOLE = listing(f"{TOKEN}|7_0|RUNNING|None", f"{TOKEN}|7_1|RUNNING|None")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n",
        "squeue: warning: the database is not up\n",
        "<html>502 Bad Gateway</html>",
        "JOBID|STATE\n7_0|RUNNING\n",
        WHOLE[: WHOLE.rindex("None")],
        WHOLE[: WHOLE.rindex("7_1")],
        WHOLE.replace("7_0", "garbage"),
        WHOLE.replace("RUNNING", ""),
    ],
)
def test_a_broken_answer_is_no_answer(command: Command, answer: str) -> None:
    command("squeue", answer)
    queue = Queue("s")
    for index in range(2):
        assert queue.look(ticket(TOKEN, index, f"7_{index}")) == Seen(None)
    assert queue.error is not None
    assert "squeue: " in queue.error


def test_warnings_among_the_jobs_and_a_second_cluster_are_no_jobs(command: Command) -> None:
    first, second = (listing(f"{TOKEN}|7_{index}|RUNNING|None") for index in range(2))
    command("squeue", f"squeue: warning\nCLUSTER: a\n{first}squeue: warning\n\nCLUSTER: b\n{second}bye\n")
    queue = Queue("s")
    assert [queue.look(ticket(TOKEN, index)).job for index in range(2)] == ["7_0", "7_1"]


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("CANCELLED by 0", (False, "CANCELLED")),
        ("CANCELLED+", (False, "CANCELLED")),
        ("OUT_OF_ME+", (False, "OUT_OF_MEMORY")),
        ("COMPLET+", (True, "COMPLET")),  # COMPLETED or COMPLETING
        ("COMPLETING", (True, "COMPLETING")),
        ("REQUEUE_HOLD", (True, "PENDING")),
        ("SPECIAL_EXIT", (True, "PENDING")),
        ("LAUNCH_FAILED", (False, "LAUNCH_FAILED")),
    ],
)
def test_words_of_states(command: Command, word: str, seen: tuple[bool, str]) -> None:
    command("squeue", listing(f"{TOKEN}|7_0|{word}|None"))
    assert Queue("s").look(ticket(TOKEN, 0, "7_0"))[:2] == seen


def test_the_end_of_a_job_that_squeue_forgot_is_asked_for_when_it_is_forgotten(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.launch.slurm_queue.QUEUE_SECONDS", 0.0)
    command("squeue", listing(f"{TOKEN}|7_1|RUNNING|None"))
    sacct = command("sacct", "warning: slow\n7_0|COMPLETED\n7_1|RUNNING\n7_[2-3]|PENDING\n")
    queue = Queue("s")
    assert queue.look(ticket(TOKEN, 0, "7_0")).word == "COMPLETED"
    assert queue.look(ticket(TOKEN, 1, "7_1")).alive
    command("squeue", listing())
    command("sacct", "7_0|COMPLETED\n7_1|CANCELLED by 0\n")
    assert queue.look(ticket(TOKEN, 1, "7_1")) == Seen(False, "CANCELLED", "", "7_1")
    sacct.unlink()
    for _ in range(3):
        assert queue.look(ticket(TOKEN, 5, "7_5")) == Seen(False)
    assert len(sacct.read_text().splitlines()) == 1


def test_a_job_that_another_study_submitted_is_found_by_its_token_too(command: Command) -> None:
    calls = command("squeue", listing(f"{TOKEN}|7_0|RUNNING|None", name="dit-other"))
    queue = Queue("s")
    assert queue.look({**ticket(TOKEN, 0), "study": "other"}).alive
    assert queue.look(ticket("ba9876543210", 0)).alive is False
    assert {line.split()[3] for line in calls.read_text().splitlines()} == {
        "--name=dit-other",
        "--name=dit-other,dit-s",
    }
