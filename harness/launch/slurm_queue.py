"""What Slurm has of a study's jobs, as squeue and sacct tell it.

The launcher makes a token for each array: sbatch takes it as the array's comment, and every claim holds the token and
the index of its task. A job is found by its recorded number first, whatever its name and comment have become; by the
token when the launcher ended before it could write down the number. One squeue answers for a whole study and those that
share cells with it, a second one for recorded numbers that the first does not list. sacct is asked only about jobs that
squeue no longer lists.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from dataclasses import dataclass, field

from harness.launch.slurm_commands import SlurmDownError, SlurmError, job_name, run
from harness.runs.attempts import Seen
from harness.runs.records import Ticket

#: How long an answer of squeue is used, in seconds.
QUEUE_SECONDS = 3.0

#: States of squeue and sacct after which nothing runs; CANCELLED may be followed by "by <user>".
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
}

#: States of jobs that wait, beside PENDING: requeued ones, some of them held.
_WAITING = {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}

#: The fields of a job that squeue lists: number, state, reason, comment, name, batch script.
_FIELDS = ["%i", "%T", "%r", "%k", "%j", "%o"]

#: A token, as the launcher makes it.
_TOKEN = re.compile("[0-9a-f]{12}")


@dataclass(frozen=True)
class _Listed:
    """A job as squeue lists it. Its name and comment may be anybody's words."""

    seen: Seen
    comment: str
    name: str
    script: str

    def is_of(self, token: str, name: str) -> bool:
        """Whether a job with a recorded number is still the one that was submitted with this token.

        Anybody may change name and comment, but not the script. Slurm counts from 1 again when it has lost its state:
        the number then belongs to somebody else's job, or to another one of this study, which has its own token.
        """
        if self.comment == token:
            return True
        return not _TOKEN.fullmatch(self.comment) and (self.name == name or "/submitit/" in self.script)


def _squeue(*options: str) -> list[_Listed]:
    """The jobs that squeue lists.

    Raises:
        SlurmError: it gave no answer, or one that breaks off or cannot be read.
    """
    # --all: jobs of hidden partitions too
    mark = f"@{uuid.uuid4().hex}@"  # in nobody's comment; one before each field, and one more at the end of the job
    out = run("squeue", "--all", "--array", "--states=all", *options, f"--format={mark}{mark.join(_FIELDS)}{mark}")
    words = out.split(mark)
    jobs = list(zip(*[iter(words[1:])] * (len(_FIELDS) + 1), strict=False))
    # the first one is the header, one a cluster: without it there is no answer. What is between two jobs is of neither
    if not jobs or (len(words) - 1) % (len(_FIELDS) + 1):
        raise SlurmDownError("squeue: the answer is empty, or breaks off")
    return [_listed(*values) for *values, _ in jobs if values[0] != jobs[0][0]]


def _listed(number: str, word: str, reason: str, comment: str, name: str, script: str) -> _Listed:
    state = _state(word)
    if not re.fullmatch(r"\d+(_\d+)?(\+\d+)?", number) or not re.fullmatch("[A-Z_]+", state):
        raise SlurmDownError(f"squeue: {number!r} {word!r} cannot be read as the number of a job and its state")
    reason = "" if reason == "None" else reason
    if state in _WAITING:
        state, reason = "PENDING", f"{state} {reason}".strip()
    return _Listed(Seen(state not in _ENDED, state, reason, number), comment, name, script)


def _state(word: str) -> str:
    """The name of a state, without who caused it, and whole: a name that was cut short ends in a plus."""
    name, plus, _ = word.partition(" ")[0].partition("+")
    whole = [state for state in (*_ENDED, "COMPLETING") if plus and state.startswith(name)]
    return whole[0] if len(whole) == 1 else name


@dataclass
class Queue:
    """What Slurm knows about the jobs of a study, and of others that submitted some of its cells.

    Reads only, and keeps an answer for `QUEUE_SECONDS`.
    """

    study: str
    #: Why Slurm did not answer, in its own words; None when it answered, or was not asked yet.
    error: str | None = None
    _jobs: dict[str, _Listed] = field(default_factory=dict)  # by number
    _tokens: dict[tuple[str, int], Seen] = field(default_factory=dict)  # by comment and index in the array
    _asked_at: float | None = None
    _names: set[str] = field(default_factory=set)  # of jobs, of studies
    _tokens_asked: set[str] = field(default_factory=set)
    _strays: set[str] = field(default_factory=set)  # arrays that were once not listed by name
    _strays_asked: set[str] = field(default_factory=set)  # in this answer
    _accounts: dict[str, Seen] = field(default_factory=dict)  # of ended jobs, by number
    _accounts_asked_at: float | None = None
    _unaccounted: set[str] = field(default_factory=set)

    def look(self, ticket: Ticket) -> Seen:
        """The state of the job with this ticket (see `harness.launch.slurm`)."""
        token, number, name = str(ticket["token"]), ticket.get("job"), self._name(ticket)
        if name not in self._names:
            self._names |= {name}
            self.forget()
        if self._asked_at is None or time.monotonic() - self._asked_at > QUEUE_SECONDS:
            self._ask()
        elif self.error is None and not number and not self._find(ticket) and token not in self._tokens_asked:
            self._ask()  # the array may be younger than the answer: it is missing when a new answer lacks it too
        self._tokens_asked.add(token)
        if self.error is None and number and not self._find(ticket):
            self._ask_for(number)
        if self.error is not None:
            return Seen(None)
        return self._find(ticket) or (self._accounted(number) if number else None) or Seen(False)

    def forget(self) -> None:
        """Drop the answer, so that the next look asks Slurm."""
        self._asked_at = None

    def _name(self, ticket: Ticket) -> str:
        """The name that the job was submitted with."""
        return job_name(str(ticket.get("study", self.study)))

    def _find(self, ticket: Ticket) -> Seen | None:
        """The job in the answer: by its number, else by its token."""
        token, job = str(ticket["token"]), self._jobs.get(str(ticket.get("job")))
        if job is not None and job.is_of(token, self._name(ticket)):
            return job.seen
        return self._tokens.get((token, int(ticket["index"])))

    def _ask(self) -> None:
        self._jobs, self._tokens = {}, {}
        self._strays_asked.clear()
        self._take(f"--name={','.join(sorted(self._names))}")
        self._asked_at = time.monotonic()

    def _ask_for(self, number: str) -> None:
        """Ask for a job that has another name now, and for all others that once had; not twice in one answer."""
        self._strays.add(number.partition("_")[0])
        if not self._strays <= self._strays_asked:
            self._take(f"--jobs={','.join(sorted(self._strays))}")
            self._strays_asked |= self._strays

    def _take(self, question: str) -> None:
        """Add what squeue lists."""
        self.error = None
        try:
            jobs = _squeue(question)
        except SlurmError as error:
            # what squeue says when all it was asked for has ended long ago
            self.error = None if "invalid job id" in str(error).lower() else str(error)
            return
        for job in jobs:
            number = str(job.seen.job)
            self._jobs[number] = job
            # a single job is no array, and has no index
            self._tokens[job.comment, int(number.partition("_")[2].partition("+")[0] or 0)] = job.seen

    def _accounted(self, number: str) -> Seen | None:
        """What sacct remembers of an ended job; None where it does not, or where there is no accounting.

        It is asked once in an answer of squeue, and not again for a job that it did not remember.
        """
        known = number in self._accounts or number in self._unaccounted
        if not known and self._accounts_asked_at != self._asked_at:
            self._accounts_asked_at = self._asked_at
            name = f"--name={','.join(sorted(self._names))}"
            with contextlib.suppress(SlurmError):
                for line in run("sacct", "-n", "-X", "-P", "-S", "now-30days", name, "-o", "JobID,State").splitlines():
                    job, _, word = line.partition("|")
                    # a job that squeue does not list is not at work, whatever the accounting says
                    if (state := _state(word)) in _ENDED:
                        self._accounts[job] = Seen(False, state, "", job)
        self._unaccounted.add(number)
        return self._accounts.get(number)
