"""Folders of images: the layouts, the split, the fingerprint, and what is wrong with a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.data.dataset import Source
from harness.data.images import ImageFiles, main, read_image, scan, warning
from harness.data.read_ahead import read_ahead
from harness.data.sources import check_available, load
from harness.data.trees import find_tree
from harness.errors import InputError
from harness.files import write_json
from harness.spec.data import Data


def fill(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """A class folder for each name with so many random pictures."""
    rng = np.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def data_of(folder: Path, classes: int, resolution: int = 8) -> Data:
    found = scan(find_tree(folder))
    return Data(name="folder", resolution=resolution, classes=classes, fingerprint=found.fingerprint)


# the layouts


def test_a_plain_tree_holds_a_tenth_of_every_class_out(tmp_path: Path) -> None:
    fill(tmp_path, {"b": 20, "a": 10, "c": 2})
    tree = find_tree(tmp_path)
    assert tree.classes == ("a", "b", "c")
    assert (len(tree.train), len(tree.heldout)) == (9 + 18 + 1, 1 + 2 + 1)
    assert not set(tree.train) & set(tree.heldout)
    assert all(path.startswith(tree.classes[label] + "/") for path, label in tree.train)
    assert find_tree(tmp_path) == tree


def test_train_and_val_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 3, "b": 4})
    fill(tmp_path / "val", {"a": 1, "b": 2}, seed=1)
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    dataset = load(data_of(tmp_path, 2), Source(tmp_path))
    assert dataset.train.labels.tolist() == [0] * 3 + [1] * 4
    assert dataset.heldout.labels.tolist() == [0, 1, 1]
    assert dataset.train.images.shape == (7, 8, 8, 3)
    first = read_image(tmp_path / "train" / "a" / "000.png", 8)
    assert np.array_equal(dataset.train.images[np.array([0])][0], first)
    assert np.array_equal(dataset.train.array()[0], first)


def test_files_are_indexed_like_an_array(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 5})
    files = ImageFiles(tmp_path, [f"a/{i:03d}.png" for i in range(5)], 8)
    whole = files[np.arange(5)]
    assert whole.shape == files.shape == (5, 8, 8, 3)
    assert np.array_equal(files[np.array([3, 1])], whole[[3, 1]])
    assert files[np.array([], dtype=int)].shape == (0, 8, 8, 3)


def test_files_are_read_ahead_in_order_and_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 9})
    files = ImageFiles(tmp_path, [f"a/{i:03d}.png" for i in range(9)], 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(3))
    readers: set[int] = set()
    both = threading.Barrier(2, timeout=20)

    class Watched:
        several_threads, shape = True, files.shape

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: Any, /) -> Any:
            readers.add(threading.get_ident())
            if 0 in index or 2 in index:
                both.wait()  # for the other one of the first two batches
            return files[index]

    batches = [np.arange(first, min(first + 2, 9)) for first in range(0, 9, 2)]
    found = list(read_ahead(Watched(), batches))
    assert np.array_equal(np.concatenate(found), files[np.arange(9)])
    assert len(readers) > 1
    (tmp_path / "a" / "005.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"005\.png: no readable image"):
        list(read_ahead(files, batches))


# the fingerprint


def test_the_fingerprint_knows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, other = fill(tmp_path / "1", {"a": 4, "b": 4}), fill(tmp_path / "2", {"a": 4, "b": 4})
    before = scan(find_tree(one)).fingerprint
    assert scan(find_tree(other)).fingerprint == before
    data = data_of(one, 2)
    file = other / "a" / "001.png"
    Image.new("RGB", (12, 10), (9, 9, 9)).save(file)
    assert scan(find_tree(other)).fingerprint != before
    with pytest.raises(InputError, match=r"this is other data \(fingerprint \w{12}, data.fingerprint is"):
        load(data, Source(other))


def test_a_scan_is_done_once_until_a_file_changes(tmp_path: Path) -> None:
    folder, cache = fill(tmp_path / "images", {"a": 4, "b": 4}), tmp_path / "cache"
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))

    first = scan(find_tree(folder), cache, progress)
    assert reports == [(8, 8)]
    assert scan(find_tree(folder), cache, progress) == first
    assert len(reports) == 1
    (folder / "a" / "000.png").write_bytes((folder / "a" / "001.png").read_bytes())
    assert scan(find_tree(folder), cache, progress) != first
    assert len(reports) == 2


def test_the_module_says_what_a_sweep_needs(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 4, "b": 4})
    done = subprocess.run(
        [sys.executable, "-m", "harness.data.images", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert f'fingerprint = "{scan(find_tree(tmp_path)).fingerprint}"' in done.stdout
    assert "classes = 2" in done.stdout
    failed = subprocess.run(
        [sys.executable, "-m", "harness.data.images", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")


# what is wrong with a folder


def test_unreadable_files_are_named_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, {"a": 20, "b": 20})
    whole = (tmp_path / "a" / "003.png").read_bytes()
    (tmp_path / "a" / "003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "004.png").write_bytes(b"")
    data = data_of(tmp_path, 2)
    dataset = load(data, Source(tmp_path))
    assert len(dataset.train.images) + len(dataset.heldout.images) == 38
    line = caplog.text
    assert "2 of 40 files are no readable images: a/003.png, b/004.png; left out" in line
    assert len(dataset.train.images) == len(dataset.train.labels)
    found = scan(find_tree(tmp_path))
    said = warning(find_tree(tmp_path), found)
    assert said is not None
    assert said in line


def test_too_many_unreadable_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20})
    for i in range(11):
        (tmp_path / "a" / f"{i:03d}.png").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"11 of 20 files are no readable images: a/\d+.png.* and 6 more; replace"):
        scan(find_tree(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: f.mkdir(),
            "no images; it should hold one subfolder a class, with the images inside, or images without",
        ),
        (lambda f: (f / "a").mkdir(parents=True), "no training images; allowed: .jpg"),
        (lambda f: fill(f / "train", {"a": 2}), "has train/ and no val/"),
        (lambda f: (fill(f / "train", {"a": 2}), fill(f / "val", {"b": 2})), "different classes"),
        (lambda f: fill(f, {"a": 2, "b": 2, "c": 2}), "3 classes (subfolders), but data.name folder says 2"),
        (lambda f: None, "is not a folder"),
    ],
)
def test_what_is_no_image_folder_is_one_line(tmp_path: Path, make: Any, message: str) -> None:
    folder = tmp_path / "images"
    make(folder)
    data = Data(name="folder", resolution=8, classes=2, fingerprint="0" * 12)
    for action in (check_available, load):
        with pytest.raises(InputError) as error:
            action(data, Source(folder))
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_imagenet_needs_its_layout_and_a_thousand_classes(tmp_path: Path) -> None:
    data = Data(name="imagenet", resolution=8)
    with pytest.raises(InputError, match="set resources"):
        check_available(data)
    fill(tmp_path / "flat", {"a": 2})
    with pytest.raises(InputError, match="has no train/ and val/"):
        check_available(data, Source(tmp_path / "flat"))
    fill(tmp_path / "small" / "train", {"a": 2})
    fill(tmp_path / "small" / "val", {"a": 2})
    with pytest.raises(InputError, match=r"1 classes \(subfolders\), but data.name imagenet says 1000"):
        check_available(data, Source(tmp_path / "small"))


# folders are checked as read


def told(folder: Path) -> tuple[int, str, str]:
    """What `python -m harness.data.images` says: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(folder)])
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_what_is_left_out_is_counted_by_reason_and_not_learned_from(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "003.png").write_bytes(b"junk")
    Image.new("F", (9, 9)).save(tmp_path / "b" / "004.tif")
    for name in ("notes.txt", "x.gif"):
        (tmp_path / "a" / name).write_bytes(b"")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    (tmp_path / "b" / "loop.png").symlink_to("loop.png")
    (tmp_path / "b" / ".hidden.png").write_bytes(b"")
    fill(tmp_path / "b" / "deep", {"deeper": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "top.jpg").write_bytes(b"")
    code, out, err = told(tmp_path)
    assert code == 0
    assert out.splitlines()[-1] == "# 35 images to learn from, 4 held out"
    (line,) = err.splitlines()
    for part in (
        "2 of 41 files are no readable images: a/003.png, b/004.tif (pixel mode F, whose range",
        "2 other suffix (a/notes.txt)",
        "2 dangling link (a/gone.png)",
        "1 hidden (b/.hidden.png)",
        "3 in a folder below its class (b/deep/deeper/00",
        "1 no file (a/pipe.png)",
        "1 outside the class folders (top.jpg)",
    ):
        assert part in line
    dataset = load(data_of(tmp_path, 2), Source(tmp_path))
    assert (len(dataset.train.labels), len(dataset.heldout.labels)) == (35, 4)


def as_nobody(folder: Path) -> AbstractContextManager[object]:
    """Root may read all; here it is nobody."""
    if os.geteuid() != 0:
        return contextlib.nullcontext()
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    stack = contextlib.ExitStack()
    stack.callback(os.seteuid, 0)
    os.seteuid(65534)
    return stack


ODD: dict[str, tuple[Any, str]] = {
    "an empty class": (lambda f: (f / "c").mkdir(), "1 of 3 classes have no training image: c"),
    "an empty class of a split": (
        lambda f: (fill(f / "train", {"a": 2, "b": 2}), fill(f / "val", {"a": 2}), (f / "val" / "b").mkdir()),
        "1 of 2 classes have no held-out image: b",
    ),
    "one image a class": (
        lambda f: [file.unlink() for name in "ab" for file in sorted((f / name).iterdir())[1:]],
        "2 of 2 classes have no held-out image: a, b; without train/ and val/ a class needs two images at least",
    ),
    "a class of damaged images": (
        lambda f: [file.write_bytes(b"junk") for file in (f / "b").iterdir()],
        "1 of 2 classes have no training image: b; without train/ and val/ a class needs two images at least; "
        "left out: 4 unreadable (b/000.png)",
    ),
    "a class of other files": (
        lambda f: [file.rename(file.with_suffix(".txt")) for file in (f / "b").iterdir()],
        "no training image: b; without train/ and val/ a class needs two images at least; left out: 4 other suffix (b/",
    ),
    "a class of links to nothing": (
        lambda f: ((f / "c").mkdir(), [(f / "c" / f"{i}.png").symlink_to("gone") for i in range(3)]),
        "left out: 3 dangling link (c/0.png)",
    ),
    "images a folder too deep": (
        lambda f: ((f / "c").mkdir(), (f / "a").rename(f / "c" / "a")),
        "1 of 2 classes have no training image: c; without train/ and val/ a class needs two images at least; "
        "left out: 4 in a folder below its class (c/a/00",
    ),
    "a class that loops": (lambda f: (f / "c").symlink_to("c"), ""),
    "a class that is the folder": (lambda f: (f / "c").symlink_to("."), "1 of 3 classes have no training image: c"),
    "a file as train": (lambda f: (f / "train").write_bytes(b""), ""),
    "a file as val": (lambda f: (fill(f / "train", {"a": 2}), (f / "val").write_bytes(b"")), "has train/ and no val/"),
    "a name that is no UTF-8": (
        lambda f: Path(os.fsdecode(bytes(f) + b"/a/\xff.png")).write_bytes(b""),
        "the name is not UTF-8; rename it",
    ),
    "a class that is no UTF-8": (
        lambda f: Path(os.fsdecode(bytes(f) + b"/\xe9")).mkdir(),
        "the name is not UTF-8; rename it",
    ),
    "a line break": (lambda f: (f / "a" / "x\ny.png").write_bytes(b"junk"), "'a/x\\ny.png'"),
    "a class without permission": (lambda f: (f / "a").chmod(0), "cannot be read (Permission denied)"),
    "a folder without permission": (lambda f: f.chmod(0), "cannot be read (Permission denied)"),
    "a file without permission": (lambda f: (f / "a" / "000.png").chmod(0), "a/000.png (Permission denied)"),
    "a name that is too long": (lambda f: f.rename(f.parent / "elsewhere") and f.symlink_to("x" * 255), "not a folder"),
    "a folder that loops": (lambda f: f.rename(f.parent / "elsewhere") and f.symlink_to(f), "not a folder"),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_a_folder_holds_is_one_line(tmp_path: Path, name: str) -> None:
    change, message = ODD[name]
    folder = fill(tmp_path / "images", {"a": 4, "b": 4}, seed=3)
    change(folder)
    with as_nobody(tmp_path) if "permission" in name else contextlib.nullcontext():
        code, out, err = told(folder)
    if folder.is_dir():
        folder.chmod(0o755)
    assert message in err
    assert len(err.splitlines()) == (1 if message or "loops" in name else 0)
    assert err.startswith("error: " if code else ("warning: ", ""))
    assert code == (0 if "fingerprint" in out else 2)


def test_a_check_of_an_older_version_does_not_count(tmp_path: Path) -> None:
    """It took a file of 16 bits for an image, whose levels were clipped."""
    folder, cache = fill(tmp_path / "images", {"a": 4, "b": 4}), tmp_path / "cache"
    tree = find_tree(folder)
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path, label in (*tree.train, *tree.heldout):
        stat = (folder / path).stat()
        digest.update(f"{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    write_json(cache / f"{digest.hexdigest()[:16]}.json", {"fingerprint": "0" * 12, "unreadable": []})
    assert scan(tree, cache) == scan(tree)


def test_what_the_system_does_not_read_today_is_asked_for_again(tmp_path: Path) -> None:
    folder, cache = fill(tmp_path / "images", {"a": 4, "b": 4}), tmp_path / "cache"
    tree = find_tree(folder)
    (folder / "a" / "003.png").chmod(0)
    with as_nobody(folder):
        assert scan(tree).unreadable == {"a/003.png": "Permission denied"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
        with pytest.raises(InputError, match=r"8 of 8 files are no readable images: a/000\.png \(Input/output error\)"):
            scan(tree, cache)
    (folder / "a" / "003.png").chmod(0o644)
    assert scan(tree, cache).unreadable == {}
