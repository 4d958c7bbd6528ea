"""The ADM suite's files: what is read of them, what is refused, and that nothing is executed."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from harness.errors import InputError
from harness.evaluation import adm
from harness.launch.checks import check_evaluations
from harness.launch.launch import launch
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Resources
from sweeps.grid import load_sweep
from tests.evaluation.samples import read_samples
from tests.evaluation.test_inception import SWEEP


def write(path: Path, change: dict[str, Any] | None = None) -> Path:
    """A reference of 16x16 images, its statistics zeros, with some of its arrays changed; None leaves one out."""
    arrays: dict[str, Any] = {name: np.zeros(shape, dtype=np.float32) for name, shape in adm.STATISTICS.items()}
    arrays["arr_0"] = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    arrays |= change or {}
    with path.open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("adm") / "VIRTUAL.npz")


def test_what_a_reference_holds(reference: Path) -> None:
    found = adm.find(str(reference), 16)
    assert found.count == 6
    assert found.label == f"adm/VIRTUAL(6)@{found.content_hash[:8]}"
    for spatial, dims in ((False, 2048), (True, 2023)):
        mu, sigma = found.statistics(spatial)
        assert (mu.shape, sigma.shape) == ((dims,), (dims, dims))
        assert mu.dtype == sigma.dtype == np.float64
    assert found.images().shape == (6, 16, 16, 3)


def test_headers_are_read_without_the_arrays(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("an array was read"))
    assert adm.headers(reference)["sigma"] == ((2048, 2048), np.dtype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_s": None, "mu_s": None}, r"lacks mu_s, sigma_s \(has mu, sigma, arr_0\)"),
        ({"mu": np.zeros(64)}, r"mu is float64 \(64,\), wanted floats \(2048,\): statistics of another extractor"),
        ({"mu": np.zeros(2048, dtype=int)}, "mu is int64"),
        ({"arr_0": np.zeros((6, 8, 8, 3), np.uint8)}, r"wanted uint8 \(N, 16, 16, 3\): a reference of another resol"),
        ({"arr_0": np.zeros((6, 16, 16, 3))}, "arr_0 is float64"),
    ],
)
def test_other_references_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "other.npz", change)
    with pytest.raises(InputError, match=rf"other\.npz: .*{message}"):
        adm.find(str(path), 16)


def test_statistics_must_be_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "nan.npz", {"mu_s": np.full(2023, np.nan)})
    found = adm.find(str(path), 16)
    found.statistics()
    with pytest.raises(InputError, match=r"nan\.npz: mu_s holds values that are not finite"):
        found.statistics(spatial=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -np.eye(2048, dtype=np.float32)}, "sigma is no covariance: it has a negative eigenvalue -1"),
        ({"sigma": np.eye(2048, k=1, dtype=np.float32)}, "sigma is not symmetric"),
        ({"sigma": np.full((2048, 2048), np.inf, np.float32)}, r"sigma holds values that are not finite \(4194304 of"),
    ],
)
def test_what_no_images_have_is_refused_before_the_training(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "odd.npz", change)
    evaluation = Evaluation(samples=10, reference="adm", extractor="inception-v3-compat")
    data = Data(name="imagenet", resolution=16)
    cell, now = SimpleNamespace(data=data), SimpleNamespace(state=State.MISSING)
    item = SimpleNamespace(now=now, evaluations=[evaluation], cell=cell)
    sweep = SimpleNamespace(path=Path("s.toml"), resources=Resources(adm_reference=str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.evaluation.inception.Inception.check", lambda *_: None)
        with pytest.raises(InputError, match=rf"^s\.toml: .*odd\.npz: {message}"):
            check_evaluations(sweep, [item])  # type: ignore[arg-type, list-item]


def packed(path: Path, **arrays: tuple[tuple[int, ...], int]) -> Path:
    """An npz of zeros by name, whose header asks for a shape, and which holds so many bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, size) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1" if name == "arr_0" else "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for first in range(0, size, 2**20):
                    file.write(bytes(min(2**20, size - first)))
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": ((2**50, 16, 16, 3), 10)}, r"no whole npz \(arr_0\.npy has 138 bytes, its header asks for \d{18}\)"),
        ({"arr_0": ((100_000, 16, 16, 3), 76_800_000)}, r"no whole npz \(arr_0\.npy unpacks \d+ bytes to 76800128"),
        ({"other": ((20_000_000,), 80_000_000)}, r"no whole npz \(other\.npy unpacks \d+ bytes"),
        ({f"a{i}": ((1,), 4) for i in range(1001)}, "1001 arrays; allowed: at most 1000"),
    ],
    ids=["shape", "images", "other", "many"],
)
def test_a_zip_bomb_is_refused_by_its_headers(tmp_path: Path, arrays: Any, message: str) -> None:
    path = packed(tmp_path / "bomb.npz", **arrays)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        adm.find(str(path), 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_no_more_images_than_any_batch_has(tmp_path: Path) -> None:
    path = write(tmp_path / "many.npz", {"arr_0": np.zeros((100_001, 1, 1, 3), np.uint8)})
    with pytest.raises(InputError, match=r"many\.npz: arr_0 says it holds 100001 images; allowed: 2 to 100000"):
        adm.find(str(path), 1)


def test_damaged_files_are_one_line(reference: Path, tmp_path: Path) -> None:
    data = reference.read_bytes()
    for name, content in (("cut", data[:-1000]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.npz: no whole npz") as caught:
            adm.find(str(tmp_path / f"{name}.npz"), 16)
        assert "\n" not in str(caught.value)
    flipped = bytearray(data)
    flipped[data.index(b"arr_0.npy") + 500] ^= 1  # within the images: only their checksum tells
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with pytest.raises(InputError, match=r"flipped\.npz: no whole npz \(Bad CRC"):
        adm.find(str(tmp_path / "flipped.npz"), 16).images()


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", arr_0=np.array([Code()], dtype=object))
    with pytest.raises(InputError, match="arr_0 is object"):
        read_samples(Path("evil.npz"))
    with pytest.raises(InputError, match="allow_pickle"):
        adm._read(Path("evil.npz"), "arr_0")
    assert not Path("was-executed").exists()


def test_samples_read_back(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(5)
    path = tmp_path / "deep" / "samples.npz"
    adm.write_samples(path, images, labels)
    with np.load(path, allow_pickle=False) as plain:  # anybody's reader
        assert sorted(plain) == ["arr_0", "arr_1"]
        assert np.array_equal(plain["arr_0"], images)
    back = read_samples(path)
    assert np.array_equal(back[0], images)
    assert np.array_equal(back[1], labels)
    np.savez(tmp_path / "unlabelled.npz", images)
    assert read_samples(tmp_path / "unlabelled.npz")[1].tolist() == [0] * 5
    np.savez(tmp_path / "other.npz", images=images)
    with pytest.raises(InputError, match=r"it lacks arr_0 \(has images\)"):
        read_samples(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("notes.txt", "no array at all")
    with pytest.raises(InputError, match="no whole npz"):
        read_samples(tmp_path / "zip.npz")


def test_a_launch_without_the_reference_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.sources.check_available", lambda *_: None)
    monkeypatch.setattr("harness.evaluation.inception.Inception.check", lambda *_: None)
    sweep = SWEEP.replace("samples = 10\n", 'samples = 10\nreference = "adm"\n')
    file = tmp_path / "study.toml"

    def start() -> None:
        launch(load_sweep(file), Study(tmp_path / "results", "study"), Mock())

    file.write_text(sweep)
    with pytest.raises(InputError, match=r'study\.toml: evaluation\.reference "adm" needs resources\.adm_reference'):
        start()
    file.write_text(sweep + 'adm_reference = "none.npz"\n')
    with pytest.raises(InputError, match=r"study\.toml: resources\.adm_reference: none\.npz: no such file"):
        start()
    file.write_text(sweep + f'adm_reference = "{write(tmp_path / "small.npz")}"\n')
    with pytest.raises(InputError, match=r"wanted uint8 \(N, 32, 32, 3\): a reference of another resolution"):
        start()
    assert not (tmp_path / "results").exists()


def test_a_reference_needs_its_extractor(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        SWEEP.replace('name = "imagenet"\nresolution = 32', 'name = "digits"').replace(
            "samples = 10", 'samples = 10\nreference = "adm"'
        )
    )
    with pytest.raises(
        InputError, match=r"evaluation 1\.reference: adm holds features of inception-v3-compat, .*digit"
    ):
        load_sweep(file)
