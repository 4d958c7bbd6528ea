"""Sweep files: what they enumerate, and the one line each mistake gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InputError
from harness.runs.columns import without_seeds
from sweeps.grid import load_sweep, study_name, warnings
from tests.cells import dit_spec

GOOD = """
title = "t"
[grid]
depth = [2, 4]
patch_size = [4, 2]
[model]
width = 32
[training]
steps = 10
batch_size = 4
[[evaluation]]
samples = 400
sampling_steps = 5
"""


VAE = """
[data.vae]
kind = "trained"
factor = 2
"""


def write(folder: Path, text: str, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_product_in_the_order_of_the_file(tmp_path: Path) -> None:
    cells = list(load_sweep(write(tmp_path, GOOD)).cells())
    assert [name for name, _ in cells] == ["d2-w32-p4", "d2-w32-p2", "d4-w32-p4", "d4-w32-p2"]
    assert {c.training.steps for _, c in cells} == {10}


def test_enumeration_is_lazy(tmp_path: Path) -> None:
    cells = load_sweep(write(tmp_path, GOOD)).cells()
    assert next(cells).name == "d2-w32-p4"
    assert len(list(cells)) == 3


def test_size_presets_pairs_dotted_names_and_exclusion(tmp_path: Path) -> None:
    text = """
    [grid]
    size = ["S", "XL"]
    recipe = [{ learning_rate = 1e-4, "training.batch_size" = 8 }, { learning_rate = 1e-3, "training.batch_size" = 16 }]
    "model.patch_size" = [4, 2]
    seed = [0, 1]
    [[exclude]]
    size = "XL"
    seed = 1
    """
    cells = [c for _, c in load_sweep(write(tmp_path, text)).cells()]
    assert len(cells) == 2 * 2 * 2 * 2 - 4
    models = [(dit_spec(c), c.seed) for c in cells]
    assert not [model for model, seed in models if model.width == 1152 and seed == 1]
    assert {(model.depth, model.width, model.heads) for model, _ in models} == {(12, 384, 6), (28, 1152, 16)}
    assert {(c.training.learning_rate, c.training.batch_size) for c in cells} == {(1e-4, 8), (1e-3, 16)}


SEEDS = '[grid]\n"seeds.noise" = [0, 1]\n"seeds.order" = [0, 2]\n[model]\nsize = "B"\npatch_size = 4\n'


def test_seeds_of_one_cause_are_axes(tmp_path: Path) -> None:
    cells = list(load_sweep(write(tmp_path, f"seed = 0\n{SEEDS}[seeds]\ninitialisation = 7\n")).cells())
    assert [name for name, _ in cells] == [f"B-4-noise{noise}-order{order}" for noise in (0, 1) for order in (0, 2)]
    assert [cell.drawn for _, cell in cells] == [(7, order, noise) for noise in (0, 1) for order in (0, 2)]
    assert {without_seeds(name) for name, _ in cells} == {"B-4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{SEEDS}[seeds]\nnoise = 1\n", "grid.seeds.noise: seeds.noise is set outside the grid too; keep one of them"),
        (
            f"{SEEDS}[seeds]\nweights = 1\n",
            "seeds.weights: unknown key; allowed in seeds: initialisation, order, noise",
        ),
        (
            f"{SEEDS}[seeds]\ninitialisation = -1\n",
            "seeds.initialisation: should be greater than or equal to 0 (got -1)",
        ),
        (f"{SEEDS}[seeds]\ninitialisation = 1.5\n", "seeds.initialisation: should be a whole number (got 1.5)"),
        (f"seeds = 3\n{SEEDS}", "seeds: should be a table [seeds] (got 3)"),
        (
            SEEDS.replace('"seeds.order"', '"seeds.noises"'),
            "grid.seeds.noises: unknown key (did you mean noise?); allowed in seeds: initialisation, order, noise",
        ),
    ],
)
def test_wrong_seeds_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    assert str(caught.value) == f"{path}: {message}"


def test_names_tell_what_varies(tmp_path: Path) -> None:
    text = '[grid]\nblock = ["adaln", "in-context"]\nseed = [0, 1]\n[model]\nsize = "B"\npatch_size = 4\n'
    names = [name for name, _ in load_sweep(write(tmp_path, text)).cells()]
    assert names == ["B-4-adaln-seed0", "B-4-adaln-seed1", "B-4-in-context-seed0", "B-4-in-context-seed1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[grid", "not valid TOML"),
        ("[grid]\ndepth = [1]\n", "model.width: is missing; model.patch_size: is missing (at model.depth=1)"),
        (GOOD + "[extra]\n", "extra: unknown key; allowed: title"),
        (
            GOOD.replace("steps = 10", "stepz = 10"),
            "training.stepz: unknown key (did you mean steps?); allowed in training: steps",
        ),
        (GOOD.replace("steps = 10", "steps = -1"), "training.steps: should be greater than 0"),
        (GOOD.replace("steps = 10", "steps = 0"), "training.steps: should be greater than 0"),
        (GOOD.replace("steps = 10", "steps = 1.5"), "training.steps: should be a whole number"),
        (GOOD.replace("steps = 10", 'steps = "10"'), "training.steps: should be a whole number"),
        (GOOD.replace("steps = 10", "steps = true"), "training.steps: should be a whole number"),
        (GOOD.replace("width = 32", 'width = 32\nblock = "film"'), "'cross-attention', 'adaln', 'adaln-zero' or"),
        (GOOD.replace("[4, 2]", "[4, 3]"), "model.patch_size 3 does not divide the 8x8 input of digits; allowed: 1, 2"),
        (GOOD.replace("width = 32", "width = 32\nheads = 3"), "width 32 is not divisible by heads 3"),
        (GOOD.replace("width = 32", "width = 33"), "width 33 is not divisible by 4"),
        (GOOD.replace("depth = [2, 4]", "depth = []"), "grid.depth: is empty"),
        (GOOD.replace("depth = [2, 4]", "depth = 2"), "grid.depth: should be a list"),
        (GOOD.replace("depth = [2, 4]", "depth = [2, 4, 2]"), "grid.depth: 2 stands twice"),
        (
            GOOD.replace("depth = [2, 4]", "depht = [2, 4]"),
            "grid.depht: 'depht' is no field of a cell (did you mean depth?); allowed: size",
        ),
        (GOOD.replace("depth = [2, 4]", 'size = ["M"]'), "unknown size 'M'; allowed: S, B, L, XL"),
        (GOOD.replace("depth = [2, 4]", "depth = [2, 4]\nwidth = [32]"), "grid.width: model.width is set outside"),
        (GOOD.replace("depth = [2, 4]", 'depth = [2]\nsize = ["S"]').replace("width = 32", ""), "is set by grid.depth"),
        ("title = 'x'", "grid: is empty"),
        (GOOD + "[[exclude]]\ndepth = [2, 4]\n", "grid: is empty; exclude drops every cell"),
        (GOOD + "[[exclude]]\n", "exclude 1: sets no field"),
        (GOOD.replace("depth = [2, 4]", "s = [{depth = 2}, {width = 8}]"), "every table should set the same fields"),
        (
            GOOD.replace("samples = 400", "samples = 1"),
            "evaluation 1.samples: should be greater than or equal to 2",
        ),
        (
            GOOD.replace("samples = 400", "sample = 4"),
            "evaluation 1.sample: unknown key (did you mean samples?); allowed: samples",
        ),
        (GOOD.replace("sampling_steps = 5", "sampling_steps = 2000"), "evaluation 1.sampling_steps: 2000 exceeds"),
        (GOOD.replace("samples = 400", 'extractor = "vgg"'), "unknown extractor 'vgg'; allowed: digits-cnn"),
        (GOOD.replace("samples = 400", 'extractor = "fashion-cnn"'), "does not read digits; allowed: digits-cnn"),
        (GOOD.replace("samples = 400", "at = [11]"), "evaluation 1.at: [11]; allowed: steps from 1 to 10"),
        (GOOD + "[[evaluation]]\nsamples = 400\nsampling_steps = 5\n", "evaluation 2: stands twice"),
        (GOOD + '[data]\nname = "mnist"\n', "data.name: should be 'digits', 'fashion-mnist', 'imagenet'"),
        (GOOD + "[data]\nlabels = false\n[[evaluation]]\nguidance = 2.0\n", "needs labels"),
        (
            GOOD.replace("samples = 400", 'guidance_channels = "first-three"'),
            "evaluation 1.guidance_channels: first-three needs at least 3 channels, the model has 1; allowed: as-",
        ),
        (GOOD.replace("samples = 400", "guidance_channels = 3"), "'as-published', 'all' or 'first-three' (got 3)"),
        (
            GOOD.replace("samples = 400", 'extractor = "inception-v3-compat"'),
            "inception-v3-compat does not read digits; allowed: digits-cnn",
        ),
        (GOOD + "[resources]\nslot = 1\n", "resources.slot: unknown key (did you mean slots?); allowed: executor"),
        (GOOD + "[recording]\nloss_steps = [0]\n", "recording.loss_steps"),
        (GOOD.replace("batch_size = 4", "learning_rate = nan"), "training.learning_rate"),
        (GOOD.replace("batch_size = 4", "ema_window = 0.1\nema_decay = 0.5"), "exclude each other"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_a_mistake_outside_the_grid_names_no_cell(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_sweep(write(tmp_path, GOOD.replace("steps = 10", 'steps = "10"')))
    assert str(caught.value).endswith("training.steps: should be a whole number (got '10')")
    with pytest.raises(InputError, match=r"width 32 is not divisible by heads 3$"):
        load_sweep(write(tmp_path, GOOD.replace("width = 32", "width = 32\nheads = 3")))
    with pytest.raises(InputError, match=r"patch_size 3 does not divide .* \(at model\.patch_size=3\)$"):
        load_sweep(write(tmp_path, GOOD.replace("[4, 2]", "[3]")))
    with pytest.raises(InputError, match=r"model\.depth: should be a whole number \(got '2'\) \(at model\.depth=2\)$"):
        load_sweep(write(tmp_path, GOOD.replace("depth = [2, 4]", 'depth = ["2"]')))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("[diffusion]\ntimesteps = 4", "diffusion.timesteps 4: .* allowed: 8 to 1000000$"),
        ("[diffusion]\ntimesteps = 7", "diffusion.timesteps 7: .* allowed: 8 to 1000000$"),
        ("[diffusion]\ntimesteps = 2000000", "diffusion.timesteps 2000000: "),
        ("[diffusion]\nbeta_end = 0.99", "diffusion.timesteps 1000 with .* leave 1e-415 of the signal at the last"),
        (
            "[diffusion]\ntimesteps = 10000",
            r"evaluation 1\.sampling_steps: 5 are too few for diffusion",
        ),
        ("[diffusion]\ntimesteps = 4.0", "diffusion.timesteps: should be a whole number"),
    ],
)
def test_noise_that_cannot_be_trained_or_sampled_is_refused_at_the_start(
    tmp_path: Path, change: str, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"study\.toml: {expected}") as caught:
        load_sweep(write(tmp_path, GOOD + change))
    assert "\n" not in str(caught.value)
    load_sweep(write(tmp_path, GOOD + "[diffusion]\ntimesteps = 8"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("width = 32", "width = 32\nmlp_ratio = 0.01", "model.mlp_ratio 0.01 leaves no hidden unit at width 32;"),
        ("width = 32", f"width = {10**9}", "model.width: .*less than or equal to 1000000"),
        ("width = 32", "width = 32\nmlp_ratio = 1e300", "model.mlp_ratio: .*less than or equal to 1000"),
        ("[training]", f"[data]\nname = 'imagenet'\nresolution = {10**9}\n[training]", "model: a tensor of 3e.18"),
        ("[training]", f"[data]\nname = 'imagenet'\nresolution = {10**18 + 1}\n[training]", "model: a tensor of "),
        ("width = 32", f"width = 32\nheads = {2**62}", "model: width 32 is not divisible by heads 4"),
        ("[training]", f"{VAE}channels = {10**18}\n[training]", "model: a tensor of "),
        ("depth = [2, 4]", f"depth = [{2**63}]", r"grid\.depth: 9223372036854775808; allowed: whole numbers"),
        ("steps = 10", f"steps = {10**4000}", r"training\.steps: 10+\.\.\.0+; allowed: whole numbers of 64 bits"),
        ("steps = 10", f"steps = {'9' * 5000}", "not valid TOML: Exceeds the limit"),
        ("depth = [2, 4]", f"depth = {'[' * 5000}{']' * 5000}", "not valid TOML: maximum recursion depth"),
        ('title = "t"', 'extend = ["~/block.py"]', "extend: ~/block.py; allowed: files below the sweep file"),
    ],
)  # fmt: skip
def test_sizes_and_texts_that_cannot_be_read_are_one_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(InputError, match=rf"study\.toml: {expected}") as caught:
        load_sweep(write(tmp_path, GOOD.replace(old, new)))
    assert len(str(caught.value)) < 400


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("NETWORKS = {}\nBLOCKS = {}\nEXTRACTORS = {'bad': 1}\n", encoding="utf-8-sig")
    path = tmp_path / "study.toml"
    path.write_text(GOOD.lstrip(), encoding="utf-8-sig")
    assert len(list(load_sweep(path).cells())) == 4
    path.write_text('extend = ["own.py"]\n' + GOOD, encoding="utf-8-sig")
    with pytest.raises(InputError, match=r"own\.py: EXTRACTORS: 'bad' lacks channels"):  # it was run
        load_sweep(path)


def test_a_tilde_is_the_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("data_folder", "inception_weights", "adm_reference")
    text = GOOD + "[resources]\n" + "\n".join(f'{key} = "~/{key}"' for key in keys)
    found = load_sweep(write(tmp_path, text)).resources
    assert [getattr(found, key) for key in keys] == [f"{tmp_path}/{key}" for key in keys]
    found = load_sweep(write(tmp_path, GOOD + '[resources]\ndata_folder = "./a~b"')).resources
    assert found.data_folder == "./a~b"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such sweep file"):
        load_sweep(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "a\nb", "-x"])
def test_study_names_are_plain(name: str) -> None:
    with pytest.raises(InputError, match="no study name"):
        study_name(name)


def test_too_few_samples_are_warned_about(tmp_path: Path) -> None:
    lines = warnings(load_sweep(write(tmp_path, GOOD.replace("samples = 400", "samples = 319"))))
    assert len(lines) == 1
    assert "biased" in lines[0]
    assert "at least 320" in lines[0]
    assert warnings(load_sweep(write(tmp_path, GOOD.replace("samples = 400", "samples = 320")))) == []


def test_sweeps_import_no_torch() -> None:
    code = "import sys, sweeps.grid, harness.runs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


SWEEPS = sorted(path for path in Path(__file__).parents[2].glob("sweeps/*.toml") if path.stem != "protocols")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_committed_sweeps_are_valid_and_say_what_they_are(path: Path) -> None:
    sweep = load_sweep(path)
    assert next(sweep.cells())
    header = path.read_text().split("\n\n")[0]
    assert "Run: " in header


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True),
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, unique=True),
)
def test_any_grid_has_the_size_of_its_product(
    tmp_path_factory: pytest.TempPathFactory, depths: list[int], patches: list[int]
) -> None:
    text = f"[grid]\ndepth = {depths}\npatch_size = {patches}\n[model]\nwidth = 16\n"
    cells = list(load_sweep(write(tmp_path_factory.mktemp("g"), text)).cells())
    assert len({c.id for _, c in cells}) == len(cells) == len(depths) * len(patches)
