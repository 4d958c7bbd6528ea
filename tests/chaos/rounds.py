"""Rounds of kills, and what must come out of them. `make chaos` runs many; `tests/chaos/test_chaos.py` a few in CI."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.chaos.lab import SECONDS, SWEEP, Decide, Lab, never, wait_for, warm

#: Launches after which a study must be done; each kill costs at most one, and the harness restarts lost jobs itself.
MOST_LAUNCHES = 40

#: Writes of an undisturbed launcher and of an undisturbed job; a random kill comes at one of them.
WRITES = {"launcher": 60, "job": 120}

#: Share of the launches that have a second one beside them.
TWINS = 0.25


def quiet(folder: Path, sweep: str = SWEEP) -> Lab:
    """The undisturbed study, which the disturbed ones must equal."""
    lab = Lab(folder / "quiet", sweep)
    code = lab.launch()
    assert code == 0, lab.output()
    return lab


def at_each_point(folder: Path, points: set[str]) -> Lab:
    """One study, killed once at each named write point as they come; launched again until it is done.

    When it is done before it came by all of `points`, an evaluation record is taken away, which is then made anew.
    """
    lab = Lab(folder)

    def not_yet(name: str, count: int) -> int:
        return 0 if name in lab.kills() else signal.SIGKILL

    idle = 0
    while idle < 3:
        before = len(lab.kills())
        code = lab.launch(not_yet)
        lab.check_whole()
        if code == 0 and points <= set(lab.kills()):
            return lab
        idle = idle + 1 if len(lab.kills()) == before else 0
        if code == 0:
            next(lab.study.runs_folder.glob("*/evaluations/*@8.json")).unlink()
        assert code == 0 or (code in (-9, 1) and not idle), f"exit code {code}\n{lab.output()}"
    raise AssertionError(f"never came by {sorted(points - set(lab.kills()))}\n{lab.output()}")


def random_kills(folder: Path, seed: int, least: int, undisturbed: Lab) -> Iterator[Lab]:
    """Kill at random, in as many studies as it takes to come to `least` kills; yields each once it is found equal.

    The first study has the seed, the next one the next.
    """
    kills = 0
    while kills < least:
        lab = at_random(folder / str(seed), seed, most=min(10, least - kills))
        check_equal(lab, undisturbed)
        yield lab
        kills += len(lab.kills())
        seed += 1


def at_random(folder: Path, seed: int, most: int) -> Lab:
    """One study, killed at random writes of its launchers and jobs, at most about `most` times, until it is done.

    The kills are counted in writes, not in time, so that a seed means the same anywhere.
    """
    lab, draw = Lab(folder), random.Random(seed)
    for _ in range(MOST_LAUNCHES):
        role = draw.choice(sorted(WRITES))
        where = draw.randrange(WRITES[role])
        decide = _at(role, where) if len(lab.kills()) < most else never
        others = [lab.start(decide)] if draw.random() < TWINS else []
        codes = [lab.launch(decide), *map(wait_for, others)]
        lab.check_whole()
        allowed = {0} if decide is never else {0, 1, -9}
        assert set(codes) <= allowed, f"exit codes {codes}\n{lab.output()}"
        if 0 in codes:
            return lab
    raise AssertionError(f"not done after {MOST_LAUNCHES} launches\n{lab.output()}")


def at_a_stop(folder: Path, seed: int) -> Lab:
    """One study, in which a job stops at a random write, counts as lost, is taken over, and wakes up."""
    lab, draw = Lab(folder), random.Random(seed)
    where, late = draw.randrange(WRITES["job"] // 2), draw.random() < 0.5

    def once(name: str, count: int) -> int:
        return signal.SIGSTOP if _at("job", where)(name, count) and not lab.stopped.exists() else 0

    launcher, deadline = lab.start(once), time.monotonic() + SECONDS
    while not lab.stopped.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped = int(lab.stopped.read_text())
    _wait(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED)
    for run in lab.runs():  # as a job on another host that has been silent for long
        for path in run.attempts_folder.glob("*.json"):
            record = json.loads(path.read_text())
            if (record.get("process") or {}).get("pid") == stopped:
                record["process"]["host"] = "elsewhere"
                path.write_text(json.dumps(record))
                for file in (run.progress_file, *run.attempts_folder.glob("*.json")):
                    if file.exists():
                        os.utime(file, (0, 0))
    if late:  # unless it holds the cell, all is done before it wakes up
        time.sleep(2)
    os.kill(stopped, signal.SIGCONT)
    assert wait_for(launcher) == 0, lab.output()
    _wait(lambda: not is_running(stopped))
    assert lab.launch() == 0, lab.output()
    return lab


def is_running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def grown(folder: Path, decide: Decide) -> Lab:
    """One study that gets two more cells, and other names, while its first launch runs; launched until it is done."""
    lab = Lab(folder, SWEEP.replace("slots = 2", "slots = 1"))
    first = lab.start(decide)
    _wait(lambda: bool(lab.runs()) or not is_running(first))
    lab.sweep.write_text(lab.sweep.read_text().replace("depth = [1, 2]", "depth = [1, 2]\nseed = [0, 1]"))
    codes = [lab.launch(decide), wait_for(first)]
    assert set(codes) <= {0, 1, -9}
    for _ in range(MOST_LAUNCHES):
        if lab.launch() == 0:
            return lab
    raise AssertionError(f"not done after {MOST_LAUNCHES} launches\n{lab.output()}")


def _at(role: str, where: int) -> Decide:
    return lambda name, count: signal.SIGKILL if count == where and name.startswith(role) else 0


def check_equal(disturbed: Lab, undisturbed: Lab) -> None:
    """Same weights, samples, pictures, records, rows and curves; nothing lost, nothing twice."""
    disturbed.check_over()
    mine, expected = disturbed.science(), undisturbed.science()
    assert mine.keys() == expected.keys()
    different = [name for name in expected if mine[name] != expected[name]]
    assert different == []


def main() -> None:
    """Kill at random until so many kills have been done, in as many studies as that takes; exit code 1 at a failure."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="the first study's; the next has the next")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time()) % 1_000_000
    warm()
    begun, kills, studies = time.monotonic(), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        try:
            undisturbed = quiet(Path(scratch))
            for lab in random_kills(Path(scratch), seed, options.kills, undisturbed):
                kills.update(lab.kills())
                stopped = at_a_stop(Path(scratch) / f"stop-{seed + studies}", seed + studies)
                check_equal(stopped, undisturbed)
                whole = grown(Path(scratch) / f"grown-{seed + studies}", _at("job", 10 + studies))
                whole.check_over()
                done = f"{len(lab.kills())} kills; a stop and a takeover; a growing sweep"
                print(f"seed {seed + studies}: {done}: the same result", flush=True)
                studies += 1
        except AssertionError as error:
            failed = seed + studies
            print(f"seed {failed}: {error}\nagain: python -m tests.chaos.rounds --seed {failed}", file=sys.stderr)
            sys.exit(1)
    for name, count in sorted(kills.items()):
        print(f"{count:4d}  {name}")
    seconds = time.monotonic() - begun
    print(f"{kills.total()} kills in {studies} studies, seeds from {seed}: all ended alike ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
