import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from harness.data import fashion_mnist
from harness.data.dataset import Images, Source, fingerprint_of
from harness.data.digits import DIGITS as DIGITS_SET
from harness.data.fashion_mnist import DEBIAN_FOLDER, FASHION_MNIST, read_files
from harness.data.pixels import channels_first, to_model_range
from harness.data.sources import check_available, load
from harness.errors import InputError
from harness.spec.data import Data

DIGITS, FASHION = Data(), Data(name="fashion-mnist")
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def small_fashion() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        NAMES[0]: rng.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        NAMES[1]: np.arange(12, dtype=np.uint8) % 10,
        NAMES[2]: rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        NAMES[3]: np.arange(5, dtype=np.uint8),
    }


def write(folder: Path, arrays: dict[str, np.ndarray], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


@pytest.fixture
def no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As on a machine without the Debian package; the small files of these tests count as the real ones."""
    folder = tmp_path / "usr-share"
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder)
    train, heldout = read_files(write(tmp_path / "pin", small_fashion()))
    monkeypatch.setattr(FASHION_MNIST, "fingerprint", fingerprint_of(train, heldout))
    return folder


def test_digits_split_is_pinned() -> None:
    dataset = load(DIGITS)
    assert (dataset.name, dataset.fingerprint) == ("digits", "634488df5c7b")
    assert dataset.train.images.shape == (1500, 8, 8, 1)
    assert dataset.heldout.images.shape == (297, 8, 8, 1)
    assert isinstance(dataset.train.images, np.ndarray)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]


def test_digits_are_all_there_once_at_seventeen_levels() -> None:
    dataset = load(DIGITS)
    both = np.concatenate([dataset.train.images, dataset.heldout.images])[..., 0]
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in original)
    assert np.unique(both).tolist() == [round(x * 255 / 16) for x in range(17)]


def test_digits_labels_belong_to_their_images() -> None:
    dataset, bunch = load(DIGITS), load_digits()
    label_of = {
        image.tobytes(): label
        for image, label in zip(np.rint(bunch.images * 255 / 16).astype(np.uint8), bunch.target, strict=True)
    }
    for split in (dataset.train, dataset.heldout):
        assert [label_of[image.tobytes()] for image in split.array()] == split.labels.tolist()


def test_other_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DIGITS_SET, "fingerprint", "000000000000")
    with pytest.raises(InputError, match=r"digits: .*634488df5c7b, expected 000000000000"):
        load(DIGITS)


def test_fingerprint_sees_pixels_labels_and_split() -> None:
    dataset = load(DIGITS)
    train, heldout = dataset.train, dataset.heldout
    images, labels = train.array().copy(), train.labels.copy()
    images[7, 3, 3, 0] ^= 1
    labels[7] += 1
    variants = [
        (train, heldout),
        (heldout, train),
        (Images(images, train.labels), heldout),
        (Images(train.images, labels), heldout),
    ]
    assert len({fingerprint_of(*variant) for variant in variants}) == len(variants)


def test_model_range() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    x = to_model_range(torch.from_numpy(levels)).numpy()
    assert x.dtype == np.float32
    assert x.shape == levels.shape
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert np.array_equal(np.rint((x.astype(np.float64) + 1) * 127.5), levels)
    with pytest.raises(TypeError, match="uint8, got float32"):
        to_model_range(torch.from_numpy(x))


def test_channels_first() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    turned = channels_first(images)
    assert turned.shape == (2, 3, 4, 5)
    assert turned.flags.c_contiguous
    assert turned[1, 2, 3, 4] == images[1, 3, 4, 2]


@pytest.mark.parametrize("where", ["raw", "gzipped", "torchvision", "debian"])
def test_fashion_is_the_same_from_every_source(where: str, no_debian: Path, tmp_path: Path) -> None:
    arrays = small_fashion()
    folder: Path | None = tmp_path / "data"
    if where == "debian":
        write(no_debian, arrays, zipped=True)
        folder = None
    else:
        below = "data/FashionMNIST/raw" if where == "torchvision" else "data"
        write(tmp_path / below, arrays, zipped=where == "gzipped")
    check_available(FASHION, Source(folder))
    dataset = load(FASHION, Source(folder))
    assert dataset.fingerprint == FASHION_MNIST.fingerprint
    assert dataset.train.images.shape == (12, 32, 32, 1)
    assert np.array_equal(dataset.train.images[:, 2:-2, 2:-2, 0], arrays[NAMES[0]])
    assert dataset.train.array().sum() == arrays[NAMES[0]].sum()  # so the border is 0
    assert dataset.heldout.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.heldout.labels.dtype == np.int64


def test_named_folder_comes_before_the_package(no_debian: Path, tmp_path: Path) -> None:
    write(no_debian, small_fashion())
    other = small_fashion()
    other[NAMES[0]][0, 0, 0] ^= 1
    with pytest.raises(InputError, match=r"MNIST's files carry the same names"):
        load(FASHION, Source(write(tmp_path / "mine", other)))


@pytest.mark.parametrize("action", [check_available, load])
def test_missing_fashion_names_three_ways(action: Callable[..., object], no_debian: Path, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="fashion-mnist") as caught:
            action(FASHION, Source(folder))
        message = str(caught.value)
        for way in ("resources.data_folder", "apt-get install dataset-fashion-mnist", "data_download = true"):
            assert way in message
        assert "\n" not in message
    with pytest.raises(InputError, match=r"set resources\.data_folder"):
        action(FASHION, Source(download=True))  # nowhere to download to


def test_one_missing_file_is_named(no_debian: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", small_fashion())
    (folder / NAMES[3]).unlink()
    with pytest.raises(InputError, match=NAMES[3]):
        check_available(FASHION, Source(folder))


def test_a_file_is_no_folder(no_debian: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_available(FASHION, Source(tmp_path / "file"))


def damaged() -> dict[str, tuple[str, bytes, str]]:
    """What can be wrong: the file, its content, and what the message says."""
    images, labels, _, test_labels = small_fashion().values()
    good, zipped = idx(images), gzip.compress(idx(images))
    return {
        "empty": (NAMES[0], b"", "no IDX file"),
        "magic": (NAMES[0], b"PK\x03\x04" + good[4:], "no IDX file"),
        "floats": (NAMES[0], b"\x00\x00\x0d\x03" + good[4:], "no IDX file"),
        "header": (NAMES[0], good[:10], "cut off in its header"),
        "huge": (NAMES[0], good[:4] + b"\xff" * 12 + good[16:], "header says 7922"),
        "short": (NAMES[0], good[:-1], "it holds 9407"),
        "long": (NAMES[0], good + b"\x00", "it holds more"),
        "gzip cut off": (f"{NAMES[0]}.gz", zipped[: len(zipped) // 2], "end-of-stream"),
        "gzip checksum": (f"{NAMES[0]}.gz", zipped[:-8] + b"\x00" * 8, "CRC"),
        "no gzip": (f"{NAMES[0]}.gz", good, "[Nn]ot a gzipped file"),
        "size": (NAMES[0], idx(images[:, :27]), "expected \\(28, 28\\)"),
        "labels for images": (NAMES[0], idx(labels), "expected \\(28, 28\\)"),
        "count": (NAMES[3], idx(test_labels[:-1]), "4 labels for 5 images"),
        "class": (NAMES[1], idx(labels + 1), "label 10, allowed: 0 to 9"),
    }


@pytest.mark.parametrize("case", damaged())
def test_damaged_file_is_named(case: str, no_debian: Path, tmp_path: Path) -> None:
    name, content, message = damaged()[case]
    folder = write(tmp_path / "data", small_fashion())
    (folder / name.removesuffix(".gz")).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(FASHION, Source(folder))
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_reads_the_headers(no_debian: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", small_fashion())
    (folder / NAMES[2]).write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=NAMES[2]):
        check_available(FASHION, Source(folder))


def test_download_fills_the_folder(no_debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        assert download
        write(Path(root) / "FashionMNIST" / "raw", small_fashion(), zipped=True)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    folder = tmp_path / "data"
    check_available(FASHION, Source(folder, download=True))
    assert not folder.exists()  # checking downloads nothing
    dataset = load(FASHION, Source(folder, download=True))
    assert dataset.fingerprint == FASHION_MNIST.fingerprint
    assert load(FASHION, Source(folder)).fingerprint == dataset.fingerprint  # and is found again


def test_failed_download_is_one_line(no_debian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading train-images\nmore\n")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    with pytest.raises(InputError, match=r"failed: Error downloading train-images$"):
        load(FASHION, Source(tmp_path / "data", download=True))


def test_checking_starts_without_torch() -> None:
    code = (
        "import sys; from harness.spec.data import Data; from harness.data.sources import check_available;"
        "check_available(Data()); assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="package dataset-fashion-mnist not installed")
def test_fashion_of_the_debian_package() -> None:
    dataset = load(FASHION)
    assert dataset.train.images.shape == (60_000, 32, 32, 1)
    assert dataset.heldout.images.shape == (10_000, 32, 32, 1)
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert np.bincount(dataset.heldout.labels).tolist() == [1000] * 10
