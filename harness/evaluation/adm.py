"""The files of the ADM evaluation suite (Dhariwal & Nichol 2021), which the paper uses. Imports no torch.

A reference is an npz with `mu`, `sigma` (pool_3 features of the whole training set), `mu_s`, `sigma_s` (spatial
features, for sFID) and `arr_0`, some of the images, for precision and recall. A file of samples is an npz with `arr_0`,
uint8 (N, H, W, 3), and here also `arr_1`, their labels. Nothing in a file is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import ImageArray
from harness.errors import InputError, first_line
from harness.files import large_file_hash, write_atomic
from harness.spec.evaluation import INCEPTION

#: Dimensions of the spatial features: 7 channels of 17 x 17.
SPATIAL_DIM = 7 * 17 * 17

_POOL_DIM = 2048

#: Shapes of the statistics of a reference.
STATISTICS: dict[str, tuple[int, ...]] = {
    "mu": (_POOL_DIM,),
    "sigma": (_POOL_DIM, _POOL_DIM),
    "mu_s": (SPATIAL_DIM,),
    "sigma_s": (SPATIAL_DIM, SPATIAL_DIM),
}

IMAGES, LABELS = "arr_0", "arr_1"

#: Images written at once.
_WRITTEN = 256


@dataclass(frozen=True)
class AdmReference:
    """A reference file with checked headers; arrays are read on demand.

    Attributes:
        path: the npz.
        count: images in `arr_0`.
    """

    path: Path
    count: int

    @property
    def content_hash(self) -> str:
        """Sha256 of the file, 64 hex digits."""
        return large_file_hash(self.path)

    @property
    def label(self) -> str:
        """`adm/<file stem>(<images>)@<first 8 hex digits of the file's sha256>`: identifies it in records."""
        return f"adm/{self.path.stem}({self.count})@{self.content_hash[:8]}"

    def statistics(self, spatial: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (d,) and covariance (d, d) of the pool_3 features, or of the spatial ones.

        Raises:
            InputError: the file is damaged, or holds values that are not finite.
        """
        suffix = "_s" if spatial else ""
        mu, sigma = (_read(self.path, name + suffix).astype(np.float64) for name in ("mu", "sigma"))
        for name, array in ((f"mu{suffix}", mu), (f"sigma{suffix}", sigma)):
            if not np.isfinite(array).all():
                raise InputError(f"{self.path}: {name} holds values that are not finite")
        return mu, sigma

    def images(self) -> NDArray[np.uint8]:
        """`arr_0`, uint8 (count, H, W, 3).

        Raises:
            InputError: the file is damaged.
        """
        return _read(self.path, IMAGES)


def find(configured: str | None, size: int) -> AdmReference:
    """The reference that `resources.adm_reference` names; checks the headers of the file and reads no array.

    Args:
        configured: the path.
        size: pixels per side of the images to be compared.

    Raises:
        InputError: no file is named; or the file is missing, damaged, lacks a key, or has another shape or resolution.
    """
    key = "resources.adm_reference"
    if configured is None:
        raise InputError(
            f'evaluation.reference "adm" needs {key}: the path of a reference batch of the ADM suite, such as '
            "VIRTUAL_imagenet256_labeled.npz"
        )
    path = Path(configured)
    if not path.is_file():
        raise InputError(f"{key}: {path}: no such file")
    found = headers(path)
    if missing := [name for name in (*STATISTICS, IMAGES) if name not in found]:
        raise InputError(
            f"{path}: no reference of the ADM suite, it lacks {', '.join(missing)} "
            f"(has {', '.join(found) or 'nothing'})"
        )
    for name, wanted in STATISTICS.items():
        shape, dtype = found[name]
        if shape != wanted or dtype.kind != "f":
            raise InputError(
                f"{path}: {name} is {dtype} {shape}, wanted floats {wanted}: statistics of another extractor than "
                f"{INCEPTION}"
            )
    shape, dtype = found[IMAGES]
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size, size, 3):
        raise InputError(
            f"{path}: {IMAGES} is {dtype} {shape}, wanted uint8 (N, {size}, {size}, 3): a reference of another "
            "resolution"
        )
    return AdmReference(path, shape[0])


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array of an npz, from its headers.

    Raises:
        InputError: not a whole npz.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    reader = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                    shape, _, dtype = getattr(np.lib.format, reader)(file)
                found[member.removesuffix(".npy")] = (shape, dtype)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from None
    return found


def write_samples(path: Path, images: ImageArray, labels: NDArray[np.int64]) -> None:
    """Write samples in the format of the ADM suite, atomically: `arr_0` uint8 (N, H, W, C), `arr_1` their labels.

    Only a few hundred images are in memory at a time.
    """

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), *images.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                for first in range(0, len(images), _WRITTEN):
                    part = images[np.arange(first, min(first + _WRITTEN, len(images)))]
                    file.write(np.ascontiguousarray(part, dtype=np.uint8).data)
            with archive.open(f"{LABELS}.npy", "w") as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)

    write_atomic(path, write)


def _read(path: Path, name: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            array: NDArray[Any] = file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from None
    return array


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: no whole npz ({first_line(error)}); get the file again")
