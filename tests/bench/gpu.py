"""What kernels that give the same bits, each precision, and computing activations again cost on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.data.batches import batches
from harness.spec.resources import Recording
from harness.spec.training import Precision
from harness.training.conditions import be_deterministic
from harness.training.loop import Options, Trainer
from harness.training.ranks import Ranks
from harness.training.state import TrainState
from tests.bench.pairs import Row, pair, repeated
from tests.bench.training import Setting, source

#: Steps of one call.
_STEPS = 20


def rows() -> list[Row]:
    """A step of S/2 with 64 latents of 4 x 32 x 32; no row where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    be_deterministic(compiled=False)
    steps = {name: _step(name) for name in ("fp32", "tf32", "bf16")}
    found = []
    for name, step in steps.items():
        a, b = ("any kernels", _with_any_kernels(step)), ("kernels that give the same bits", step)
        found.append(pair(f"a step of S/2, {name}", a, b, calls=_STEPS))
    for name in ("tf32", "bf16"):
        found.append(pair("a step of S/2", ("fp32", steps["fp32"]), (name, steps[name]), calls=_STEPS))
    a, b = ("keeps activations", steps["bf16"]), ("computes them again", _step("bf16", recompute=True))
    found.append(pair("a step of S/2, bf16", a, b, calls=_STEPS))
    return found


def _step(precision: Precision, *, recompute: bool = False) -> Callable[[], None]:
    shape = {"depth": 12, "width": 384, "heads": 6, "patch_size": 2}
    setting = Setting("S/2", shape, 64, _STEPS, latents=True, precision=precision)
    state = TrainState.initial(setting.cell, "cuda")
    options = Options("cuda", [], Recording(), 1e9, recompute=recompute)
    data = batches(source(setting), "cuda").train
    return repeated(Trainer(state, setting.cell, data, options, Ranks()).step, _STEPS)


def _with_any_kernels(step: Callable[[], None]) -> Callable[[], None]:
    """The same with the kernels that torch takes by itself."""

    def work() -> None:
        torch.use_deterministic_algorithms(False)
        step()
        torch.use_deterministic_algorithms(True, warn_only=True)

    return work
