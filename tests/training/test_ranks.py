"""Two ranks against one: the same weights and samples up to float summation; resuming on either; ranks that fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.sources import load
from harness.errors import InputError
from harness.evaluation.features import Extraction
from harness.evaluation.generate import Generator, generate, load_weights
from harness.evaluation.metrics import Setup, score
from harness.launch.checks import check_ranks
from harness.launch.local import _free_gpus
from harness.launch.machine import default_slots
from harness.model.dit import DiT
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from harness.spec.model import BLOCKS
from harness.spec.resources import Recording, Resources
from harness.training import checkpoint
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from harness.training.ranks import Ranks, meet
from sweeps.grid import load_sweep
from tests.cells import dit_spec
from tests.small_study import Bench, sweep_text, wait_for

torch.set_num_threads(1)

#: Of weights after 20 steps whose gradients were summed in another order: 1e-7 was seen; 3e-2 with half left out.
TOLERANCE = 1e-5

STEPS = 20
EVALUATION = Evaluation(samples=8, sampler="ddim", sampling_steps=3)


def cell(**training: Any) -> Cell:
    recipe = {"steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, "ema_window": 0.2, **training}
    shape = {"depth": 2, "width": 16, "patch_size": 4}
    return Cell.model_validate({"model": shape, "data": {"horizontal_flips": True}, "training": recipe})


def go(
    folder: Path,
    ranks: Ranks | None = None,
    *,
    micro_batch: int | None = None,
    hooks: Hooks | None = None,
    **training: Any,
) -> Run:
    """Train the cell to its end in this folder."""
    run = Run(folder)
    folder.mkdir(exist_ok=True)
    c = cell(**training)
    train(
        c,
        load(Data()),
        run,
        Options("cpu", [c.training.steps], Recording(loss_steps=(10,), loss_images=16), 1e9, micro_batch),
        hooks or Hooks(),
        ranks,
    )
    return run


def sampled(run: Run, ranks: Ranks | None = None, key: str = "k") -> Any:
    """Three parts, the last one smaller."""
    dit = load_weights(run, cell(), STEPS, ema=True, device="cpu", ranks=ranks)
    generator = Generator(dit, cell(), EVALUATION, "cpu")
    return generate(generator, run, key, batch=3, hooks=Hooks(), ranks=ranks)


def scores(images: Any, ranks: Ranks | None = None) -> dict[str, Any]:
    """Of the 8 samples against 1500 real images, which are three parts."""
    return score(images, EVALUATION, Data(), load(Data()), Setup(ranks=ranks))


class Countdown:
    """Says yes, or does something, at the nth question."""

    def __init__(self, questions: int, then: Any = True) -> None:
        self._left, self._then = questions, then

    def __call__(self) -> bool:
        self._left -= 1
        if self._left > 0:
            return False
        return bool(self._then()) if callable(self._then) else bool(self._then)


def fail() -> None:
    raise ValueError("no good")


def one_fails(rank: int, ranks: Ranks) -> None:
    with ranks.together():
        if rank == 1:
            fail()


def undefined(rank: int, ranks: Ranks) -> None:
    """Score images that have no distribution, while the other rank helps."""
    with ranks.together():
        if rank == 0:
            scores(np.zeros((8, 8, 8, 1), np.uint8), ranks)
        else:
            Extraction("digits-cnn", ranks=ranks).assist()


def agreeing(rank: int, folder: Path, note: Callable[[str, Callable[[], Any]], None]) -> None:
    """All that two ranks do together, until one fails."""
    with meet() as ranks:
        go(folder / "two", ranks)
        go(folder / "micro", ranks, micro_batch=3)  # of a share of 4: 3 and 1
        go(folder / "clipped", ranks, micro_batch=3, gradient_clip=0.1)
        for name in ("stopped", "stopped-again"):
            stop = Hooks(should_stop=Countdown(7)) if rank == 1 else None  # only one is asked
            note(name, partial(go, folder / name, ranks, hooks=stop))
        go(folder / "stopped-again", ranks)
        note("non-finite", partial(go, folder / "bad", ranks, learning_rate=1e30))
        note("one-fails", partial(one_fails, rank, ranks))
        note("first-fails", partial(ranks.on_first, fail))
        note("undefined", partial(undefined, rank, ranks))
        made = sampled(Run(folder / "sampled"), ranks)
        if made is None:
            Extraction("digits-cnn", ranks=ranks).assist()
        else:
            np.savez(folder / f"sampled{rank}.npz", images=made[0][np.arange(len(made[0]))], labels=made[1])
            (folder / "scores.json").write_text(json.dumps(scores(made[0], ranks)))
        go(folder / "fails", ranks, hooks=Hooks(should_stop=Countdown(3, fail)) if rank == 1 else None)


def killed(rank: int, folder: Path, note: Callable[[str, Callable[[], Any]], None]) -> None:
    """One rank is killed while the other works on."""
    with meet() as ranks:
        kill = Countdown(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        go(folder / "killed", ranks, hooks=Hooks(should_stop=kill) if rank == 1 else None)


def process(work: Callable[..., None], rank: int, port: int, folder: Path) -> None:
    """One rank's process; it writes down what it met."""
    told: dict[str, str] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
        (folder / f"{name}.{rank}").write_text(told.get(name, "no error"))

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    note(work.__name__, partial(work, rank, folder, note))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two ranks leave, beside the same work of one."""
    made = tmp_path_factory.mktemp("ranks")
    sampled(go(made / "one"))
    shutil.copytree(made / "one", made / "sampled")
    parts = sorted((made / "sampled" / "samples" / "k").iterdir())
    parts[0].unlink()  # the second part is there already and is not made again
    parts[2].unlink()
    context = multiprocessing.get_context("spawn")
    processes = []
    for work in (agreeing, killed):
        port = free_port()
        processes += [context.Process(target=process, args=(work, rank, port, made)) for rank in range(2)]
    for each in processes:
        each.start()
    deadline = time.monotonic() + 200
    for each in processes:
        each.join(max(0.0, deadline - time.monotonic()))
        if each.is_alive():
            each.kill()
            each.join()
    assert [each.exitcode for each in processes] == [0, 0, 0, -signal.SIGKILL]
    return made


def told(folder: Path, name: str, rank: int) -> str:
    return (folder / f"{name}.{rank}").read_text()


def apart(a: Path, b: Path) -> float:
    """Largest difference of the weights of two runs, averaged ones too."""
    one, other = (checkpoint.load(Run(path).weights_file(STEPS))[0] for path in (a, b))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_ranks_and_one_agree(folder: Path) -> None:
    assert apart(folder / "one", folder / "two") < TOLERANCE
    one, two = (TrainLog(Run(folder / name)).rows() for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for key in ("loss", "loss_train", "loss_heldout"):
        assert [row.get(key) for row in two] == pytest.approx([row.get(key) for row in one], abs=TOLERANCE)


def test_accumulated_gradients_agree(folder: Path) -> None:
    go(folder / "one-micro", micro_batch=3)  # 3, 3 and 2 of 8
    assert 0 < apart(folder / "one", folder / "one-micro") < TOLERANCE
    assert apart(folder / "one", folder / "micro") < TOLERANCE


def test_the_gradient_is_clipped_after_it_is_averaged(folder: Path) -> None:
    go(folder / "one-clipped", gradient_clip=0.1)
    assert apart(folder / "one-clipped", folder / "clipped") < TOLERANCE
    assert apart(folder / "one-clipped", folder / "one") > 100 * TOLERANCE


def test_stopped_by_any_rank_and_resumed_on_as_many_it_ends_with_the_same_bits(folder: Path) -> None:
    for rank in range(2):
        assert told(folder, "stopped-again", rank).startswith(f"StoppedError: stopped at step 7 of {STEPS}")
    whole, broken = (Run(folder / name).weights_file(STEPS).read_bytes() for name in ("two", "stopped-again"))
    assert whole == broken


def test_begun_on_two_ranks_it_ends_on_one(folder: Path) -> None:
    assert [path.name for path in Run(folder / "stopped").state_files()] == ["state-00000007.safetensors"]
    go(folder / "stopped")
    assert apart(folder / "one", folder / "stopped") < TOLERANCE


def test_all_ranks_stop_at_the_same_non_finite_loss(folder: Path) -> None:
    first, second = (told(folder, "non-finite", rank) for rank in range(2))
    assert first == second
    assert first.startswith("NonFiniteError: the loss became")
    assert not list((folder / "bad" / "checkpoints").glob("*"))


def test_when_one_rank_fails_all_do_and_can_go_on(folder: Path) -> None:
    assert [told(folder, "one-fails", rank) for rank in range(2)] == [
        "RankFailedError: rank 1: ValueError: no good",
        "ValueError: no good",
    ]
    assert told(folder, "first-fails", 0) == "ValueError: no good"
    assert told(folder, "first-fails", 1) == "RankFailedError: rank 0: ValueError: no good"
    assert told(folder, "undefined", 0).startswith("CellFailedError: all 8 generated images are the same image")
    assert told(folder, "undefined", 1).startswith("RankFailedError: rank 0: all 8 generated images are the same")


def test_two_ranks_make_the_same_samples(folder: Path) -> None:
    images, labels, _ = sampled(Run(folder / "one"))
    assert not (folder / "sampled1.npz").exists()
    with np.load(folder / "sampled0.npz") as made:
        assert np.array_equal(made["images"], images[np.arange(len(images))])
        assert np.array_equal(made["labels"], labels)
    for part in sorted((folder / "one" / "samples" / "k").iterdir()):
        assert (folder / "sampled" / "samples" / "k" / part.name).read_bytes() == part.read_bytes()


def test_two_ranks_score_alike(folder: Path) -> None:
    images, *_ = sampled(Run(folder / "one"))
    assert json.loads((folder / "scores.json").read_text()) == json.loads(json.dumps(scores(images)))


def test_the_first_rank_hears_why_another_failed(folder: Path) -> None:
    assert told(folder, "agreeing", 0) == "RankFailedError: rank 1: ValueError: no good"
    assert told(folder, "agreeing", 1) == "ValueError: no good"


def test_a_killed_rank_does_not_leave_the_others_waiting(folder: Path) -> None:
    assert told(folder, "killed", 0) == "LostRankError: another of the 2 ranks ended without a word"


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("block", sorted(BLOCKS.names))
def test_every_parameter_takes_part(block: str, labels: bool) -> None:
    """DistributedDataParallel waits in vain for the gradient of one that does not."""
    spec = {"model": {"depth": 1, "width": 16, "patch_size": 4, "block": block}, "data": {"labels": labels}}
    c = Cell.model_validate(spec)
    dit = DiT(dit_spec(c), c.data.shape)
    dit.initialise(0)
    zero = torch.zeros(1, dtype=torch.int64)
    dit(torch.zeros(1, 1, 8, 8), zero, zero if labels else None).mean().backward()
    assert all(parameter.grad is not None for parameter in dit.parameters())


def test_one_rank_sets_nothing_up() -> None:
    ranks, model = Ranks(), torch.nn.Linear(1, 1)
    assert ranks.share(8) == slice(0, 8)
    assert ranks.averaging(model) is model
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("resources", "gpus", "expected"),
    [
        ({"ranks": 3}, [], "d1-w16-p4: training.batch_size 8 is not divisible among 3 ranks"),
        ({"ranks": 3, "nodes": 2, "executor": "slurm"}, [], r"allowed in total: 1, 2, 4, 8$"),
        ({"micro_batch": 3}, [], r"micro_batch 3 does not divide the 8 images of a rank .*; allowed: 1, 2, 4, 8, and"),
        (
            {"micro_batch": 3, "ranks": 2},
            [],
            r"the 4 images of a rank \(training.batch_size 8, ranks in total: 2\); allo",
        ),
        ({"nodes": 2}, [], r'resources.nodes: 2 need executor = "slurm"; allowed here: 1'),
        ({"ranks": 2}, ["0"], r"resources.ranks: 2, but of GPUs, one a rank, 1 is there"),
    ],
)
def test_ranks_that_cannot_share_the_work(
    tmp_path: Path, resources: dict[str, Any], gpus: list[str], expected: str
) -> None:
    sweep = load_sweep(Bench(tmp_path / "b").sweep)
    object.__setattr__(sweep, "resources", Resources.model_validate(resources))
    with pytest.raises(InputError, match=expected):
        check_ranks(sweep, gpus)


def test_gpus_are_one_a_rank() -> None:
    assert Resources(device="cuda", ranks=4).gpus_wanted == 4
    assert Resources(gpus=2, ranks=2).gpus_wanted == 2
    assert Resources(ranks=2).gpus_wanted == 0
    with pytest.raises(ValueError, match="gpus 2 contradicts ranks 1, for each rank has one GPU"):
        Resources(gpus=2)
    with pytest.raises(ValueError, match='gpus 2 contradicts device "cpu"'):
        Resources(gpus=2, ranks=2, device="cpu")


def test_a_cell_takes_a_slot_a_rank() -> None:
    assert default_slots(Resources(ranks=2), ["0", "1", "2", "3"]) == 2
    assert default_slots(Resources(ranks=8), ["0", "1"]) == 1
    assert _free_gpus(["0", "1", "2"], [], 2) == "0,1"


def test_launched_on_two_ranks_and_resumed_on_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "b", sweep_text("depth = [1]", steps=200, checkpoint=0.2))
    launcher = bench.start("launch", str(bench.sweep), "--ranks", "2")
    wait_for(bench.is_training)
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 130, err
    (run,) = bench.runs().values()
    assert json.loads((run / "attempts" / "001.ended.json").read_text())["outcome"] == "stopped"
    done = bench.launch()
    assert done.returncode == 0, done.stderr
    text = (run / "log").read_text()
    assert ", 2 ranks" in text
    assert "note: ranks was 2 in the first attempt and is 1 now" in text
    undisturbed = Run(tmp_path / "one")
    undisturbed.folder.mkdir()
    _, c = Run(run).cell()
    train(
        c,
        load(c.data),
        undisturbed,
        Options("cpu", [200], Recording(loss_images=16), checkpoint_seconds=1e9),
        Hooks(),
    )
    one, other = (checkpoint.load(r.weights_file(200))[0] for r in (undisturbed, Run(run)))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3
