"""A probe: a few training steps and forward passes of a cell's shape, timed in a process of their own.

It trains on made-up images with the Trainer of real trainings, reads no data and touches no run folder. With several
ranks it is one rank's share of the batch that is measured, without the waiting for the others.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.launch import imports
from harness.launch.estimate import Probes
from harness.launch.machine import hardware
from harness.launch.site import site_of
from harness.processes import now
from harness.runs import triage
from harness.runs.cellruns import CellRun
from harness.runs.probes import Probe, Spread, probe_from, probe_key, shape_of, write_probe
from harness.runs.state import State
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.extension import Extension
from harness.spec.resources import Compilation, Recording, Resources
from sweeps.grid import Sweep

#: Measurements of one quantity.
REPEATS = 7

#: Least time of one measurement, in seconds; shorter steps are timed several at once.
_LEAST_SECONDS = 0.05

#: A warm-up ends after so many steps, or with a step that takes long.
_WARM_UP_STEPS, _LONG_STEP_SECONDS = 3, 2.0

#: A probe that takes longer, in seconds, is given up.
MOST_SECONDS = 300.0

#: The first word of the line that holds what a probe's process found.
_FOUND = "probe:"


def measure(cell: Cell, resources: Resources, device: str, *, compiled: Compilation = "off") -> Probe:
    """Time the training steps of a cell's shape, and its forward passes without gradients, in this process.

    Args:
        cell: gives network, input, batch and precision; nothing is read or written.
        resources: give ranks, micro-batch, sampling batch, and whether activations are computed again. On a GPU the
            micro-batch is the largest that fits, where none is named, as in a training.
        device: "cpu" or "cuda".
        compiled: how the network is compiled.

    Raises:
        CellFailedError: not one image fits the GPU, or the device cannot compute in the cell's precision.
        RuntimeError: it does not fit into memory (torch.OutOfMemoryError on a GPU).
    """
    import torch

    from harness.training.loop import Options, Trainer
    from harness.training.memory import largest_micro_batch
    from harness.training.precision import require
    from harness.training.ranks import Ranks
    from harness.training.state import TrainState

    share = {"batch_size": cell.training.batch_size // resources.world, "steps": 2**30}  # as if it never ended
    cell = cell.model_copy(update={"training": cell.training.model_copy(update=share)})
    require(cell.training.precision, device)
    micro_batch, recompute = resources.micro_batch, resources.recompute
    if device == "cuda" and micro_batch is None:
        micro_batch = largest_micro_batch(
            cell, device, Ranks(), compiled=compiled, recompute=recompute, cells_per_gpu=resources.cells_per_gpu
        )
        torch.cuda.reset_peak_memory_stats()
    options = Options(device, [], Recording(), None, micro_batch, compiled=compiled, recompute=recompute)
    state = TrainState.initial(cell, device)
    state.network.train()
    with contextlib.closing(Trainer(state, cell, _MadeUp(cell, device), options, Ranks())) as trainer:
        step = _timed(trainer.step, device)
        memory = _peak_memory(device)
    shape, count = cell.data.shape, resources.sampling_batch
    network = state.ema.eval()
    x = torch.randn(count, shape.channels, shape.size, shape.size, device=device)
    zeros = torch.zeros(count, dtype=torch.int64, device=device)
    with torch.inference_mode():
        passed = _timed(lambda: network(x, zeros, zeros if shape.classes else None), device)
    return Probe(step, Spread(*(seconds / count for seconds in passed)), memory, compiled != "off")


class _MadeUp:
    """Random images in the place of a data set's (see `harness.data.batches.Batches`)."""

    def __init__(self, cell: Cell, device: str) -> None:
        import torch

        shape, count = cell.data.shape, cell.training.batch_size
        self.labels = torch.zeros(count, dtype=torch.int64, device=device)
        self._images = torch.rand(count, shape.channels, shape.size, shape.size, device=device) * 2 - 1

    def x0(self, indices: Any, mirror: Any, posterior: Any, part: slice = slice(None)) -> Any:
        """See `Batches`; nothing is mirrored, and latents have no noise of their own."""
        from harness.data.batches import upload

        return self._images[upload(indices[part], self._images.device.type)]


def _timed(work: Callable[[], object], device: str) -> Spread:
    """Seconds of one call, after a warm-up."""
    import torch

    def seconds(calls: int) -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / calls

    for _ in range(_WARM_UP_STEPS):
        if seconds(1) > _LONG_STEP_SECONDS:
            break
    calls = max(1, math.ceil(_LEAST_SECONDS / seconds(1)))
    found = [seconds(calls) for _ in range(REPEATS)]
    return Spread(statistics.median(found), min(found), max(found))


def _peak_memory(device: str) -> int:
    """The most bytes so far: of torch's allocator on a GPU, of this process on a CPU."""
    import resource

    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    # what getrusage tells includes the process that started this one
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(frozen=True)
class ProbeJob:
    """A probe for a process of its own; pickled."""

    cell: Cell
    resources: Resources
    device: str
    results: str
    gpu: str = ""  # what CUDA_VISIBLE_DEVICES becomes
    extensions: tuple[Extension, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """The fields, the user's files first: unpickling loads them before the cell that uses them."""
        return {"extensions": self.extensions, **vars(self)}

    @property
    def shape(self) -> dict[str, Any]:
        """See `harness.runs.probes.shape_of`."""
        return shape_of(self.cell, self.resources, self.device, hardware(self.device))

    @property
    def shared(self) -> Shared:
        """Where probes and compiled code are kept."""
        return Shared(Path(self.results))

    def __call__(self) -> Probe:
        """Measure as a job with these resources would train."""
        import torch

        from harness.launch.compiling import choose, record_compiled, training_code, use_cache
        from harness.training.conditions import be_deterministic

        use_cache(self)
        torch.set_num_threads(self.resources.threads)
        choice = choose(self, self.device)
        be_deterministic(compiled=choice.compiled)
        found = measure(self.cell, self.resources, self.device, compiled=choice.how)
        if choice.compiled:
            record_compiled(training_code(self, choice.how))
        return found


def probes_of(sweep: Sweep, items: Iterable[CellRun], results: Path, gpus: int | None = None) -> list[ProbeJob]:
    """A probe for every distinct shape of cells that are not done, where none succeeded before; the cheapest first.

    Raises:
        InputError: the sweep is planned for another machine than this one.
    """
    site = site_of(sweep.resources, gpus)
    if not site.here:
        elsewhere = site.name(sweep.resources)
        raise InputError(f"--measure: measures this machine, and the plan is for {elsewhere}; leave one of them out")
    probes, jobs = Probes(Shared(results)), dict[str, tuple[float, ProbeJob]]()
    for item in items:
        cell, resources = item.cell, sweep.resources_of(item.cell)
        device = "cuda" if site.has_gpu(resources) else "cpu"
        found = probes.of(cell, resources, device)
        if item.now.state is State.DONE or (found is not None and not found.error):
            continue
        gpu = site.gpus[0] if device == "cuda" else ""
        job = ProbeJob(cell, resources, device, str(results), gpu, sweep.extensions)
        cost = cell.model.macs_proxy(cell.data.shape) * cell.training.batch_size
        jobs.setdefault(probe_key(job.shape), (cost, job))
    return [job for _, job in sorted(jobs.values(), key=lambda pair: pair[0])]


def run_probes(jobs: Iterable[ProbeJob]) -> Iterator[Probe]:
    """Run one after the other, each in a process of its own, and keep what they find; those that fail too.

    A process ends with this one's interruption.
    """
    for job in jobs:
        probe = _run(job)
        write_probe(job.shared, job.shape, probe, now())
        yield probe


def _run(job: ProbeJob) -> Probe:
    environment = {
        **os.environ,
        **imports.environment(),
        "CUDA_VISIBLE_DEVICES": job.gpu,
        "OMP_NUM_THREADS": str(job.resources.threads),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    }
    command = [sys.executable, imports.SAFE_PATH, "-m", "harness.launch.probe"]
    # in a session of its own the terminal's Ctrl-C does not reach it: this process ends it
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(pickle.dumps(job), timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return Probe(error=f"not measured within {MOST_SECONDS:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    told = [line for line in out.decode(errors="replace").splitlines() if line.startswith(_FOUND)]
    if told:
        return probe_from(json.loads(told[-1].removeprefix(_FOUND)))
    if process.returncode == -signal.SIGKILL:
        return Probe(error="killed, perhaps for want of memory")
    words = err.decode(errors="replace").split("\n")
    return Probe(error=next((line.strip() for line in reversed(words) if line.strip()), "ended without a word"))


def main() -> None:
    """Run the job that stdin holds, and print what it finds."""
    try:
        found = pickle.load(sys.stdin.buffer)()
    except Exception as error:
        cause = triage.classify(error)
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        found = Probe(error=str(cause) if cause is triage.Cause.MEMORY else line)
    sys.stdout.write(f"{_FOUND}{json.dumps(asdict(found))}\n")


if __name__ == "__main__":
    main()
