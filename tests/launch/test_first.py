"""What a study trains before its cells, and what that costs."""

from pathlib import Path

import pytest

from harness.cli.words import first_lines
from harness.files import write_json
from harness.launch.first import first_seconds, trained_first
from harness.runs.study import Shared
from sweeps.grid import Sweep, load_sweep

SWEEP = """
[grid]
shape = [{ depth = 1, width = 32 }, { depth = 2, width = 32 }]
[model]
patch_size = 2
[data.vae]
kind = "trained"
factor = 2
[training]
steps = 10
[[evaluation]]
samples = 8
sampling_steps = 2
extractors = ["digits-cnn", { kind = "trained", name = "mine" }]
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP)
    return load_sweep(path)


def test_what_is_there_is_not_owed(sweep: Sweep, tmp_path: Path) -> None:
    cells, shared = [cell for _, cell in sweep.cells()], Shared(tmp_path)
    owed = trained_first(sweep, cells, shared)
    assert list(owed) == ["autoencoder of digits", "extractor mine on digits"]
    assert all(gmacs > 0 for gmacs in owed.values())
    data = cells[0].data
    choice = next(e.extractor for e in sweep.evaluations if e.extractor not in (None, "digits-cnn"))
    assert not isinstance(choice, str)
    assert choice is not None
    write_json(shared.extractor_card(choice.folder_name(data)), {})  # written before the weights
    assert len(trained_first(sweep, cells, shared)) == 2
    shared.extractor_weights(choice.folder_name(data)).write_bytes(b"")
    assert list(trained_first(sweep, cells, shared)) == ["autoencoder of digits"]
    write_json(
        shared.vae_folder(data.encoding_name) / "card.json",
        {"id": data.encoding_id, "weights": "", "reconstruction": {}},
    )
    assert trained_first(sweep, cells, shared) == {}
    assert trained_first(sweep, [], Shared(tmp_path / "none")) == {}


def test_a_gpu_is_taken_where_the_plan_has_one() -> None:
    assert first_seconds(50, {"on_gpu": False}) == pytest.approx(2)
    assert first_seconds(5e5, {"on_gpu": True, "tflops": 100.0, "throughput": "given"}) == pytest.approx(10)


def test_it_is_one_line_or_none() -> None:
    assert first_lines({}) == []
    (line,) = first_lines({"extractor mine on digits": 0.2, "autoencoder of digits": 90})
    assert line.endswith("extractor mine on digits (about 1 s), autoencoder of digits (about 1.5 min)")
