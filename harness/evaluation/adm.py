"""The files of the ADM evaluation suite (Dhariwal & Nichol 2021), which the paper uses. Imports no torch.

A reference is an npz with `mu`, `sigma` (pool_3 features of the whole training set), `mu_s`, `sigma_s` (spatial
features, for sFID) and `arr_0`, some of the images, for precision and recall. A file of samples is an npz with `arr_0`,
uint8 (N, H, W, 3), and here also `arr_1`, their labels. Nothing in a file is unpickled.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import ImageArray
from harness.errors import InputError, first_line
from harness.evaluation.frechet import require_covariance
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

#: More images than any published batch holds; a file that says so would fill the memory.
_LEAST_IMAGES, _MOST_IMAGES = 2, 100_000

#: No images compress better than so many to one, and no npz has so many arrays.
_MOST_RATIO, _MOST_ARRAYS = 200, 1000

#: Bytes of the largest statistics in float64, twice over: a smaller array is no danger.
_LARGE = 2 * 8 * _POOL_DIM**2

#: Bytes in which an array's header ends, with room to spare.
_HEADER = 16_384

#: Images that are written at once.
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

    def check(self) -> None:
        """Check what `find` leaves open: that the file is whole, and that its statistics are those of a Gaussian.

        Raises:
            InputError: it is damaged, or holds values that are not finite, or a matrix that is no covariance.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()  # reads a piece at a time
        except MemoryError:  # says nothing of the file
            raise
        except Exception as error:  # a damaged archive fails in many ways
            raise _damaged(self.path, error) from None
        if damaged is not None:
            raise InputError(f"{self.path}: no whole npz (Bad CRC-32 of {damaged}); get the file again")
        for spatial in (False, True):
            _, sigma = self.statistics(spatial)
            try:
                require_covariance(sigma, "sigma_s" if spatial else "sigma")
            except ValueError as error:
                raise InputError(f"{self.path}: {error}") from None

    def statistics(self, spatial: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (d,) and covariance (d, d) of the pool_3 features, or of the spatial ones.

        Raises:
            InputError: the file is damaged, or holds values that are not finite.
        """
        suffix = "_s" if spatial else ""
        mu, sigma = (_read(self.path, name + suffix).astype(np.float64) for name in ("mu", "sigma"))
        for name, array in ((f"mu{suffix}", mu), (f"sigma{suffix}", sigma)):
            if bad := np.count_nonzero(~np.isfinite(array)):
                raise InputError(f"{self.path}: {name} holds values that are not finite ({bad} of {array.size})")
        return mu, sigma

    def images(self) -> NDArray[np.uint8]:
        """`arr_0`, uint8 (count, H, W, 3).

        Raises:
            InputError: the file is damaged.
        """
        return _read(self.path, IMAGES)


#: Where the ADM suite has its batches (github.com/openai/guided-diffusion, evaluations), by resolution.
_SUITE = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
_PUBLISHED = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}


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
            f'evaluation.reference "adm" needs {key}, the path of a reference batch of the ADM suite{_download(size)}'
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
    if not _LEAST_IMAGES <= shape[0] <= _MOST_IMAGES:
        raise InputError(
            f"{path}: {IMAGES} says it holds {shape[0]} images; allowed: {_LEAST_IMAGES} to {_MOST_IMAGES}"
        )
    return AdmReference(path, shape[0])


def _download(size: int) -> str:
    """How to get the published batch of this resolution; empty where there is none."""
    if (file := _PUBLISHED.get(size)) is None:
        return ""
    return f": curl -LO {_SUITE}/{size}/{file}"


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array of an npz, from its headers; a small part of each array is read.

    Raises:
        InputError: not a whole npz; or an array that is larger than its header says, or unpacks to far more than it
            takes in the file.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MOST_ARRAYS:
                raise ValueError(f"{len(members)} arrays; allowed: at most {_MOST_ARRAYS}")
            for member in members:
                with archive.open(member) as packed:
                    file = io.BytesIO(packed.read(_HEADER))
                version = np.lib.format.read_magic(file)
                reader = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                shape, _, dtype = getattr(np.lib.format, reader)(file)
                _check_size(member, file.tell() + math.prod(shape) * dtype.itemsize, dtype)
                found[member.filename.removesuffix(".npy")] = (shape, dtype)
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise _damaged(path, error) from None
    return found


def _check_size(member: zipfile.ZipInfo, wanted: int, dtype: np.dtype[Any]) -> None:
    """Check that an array has as many bytes as its header asks for, and that it is no zip bomb."""
    name, size = member.filename, member.file_size
    if size != wanted and not dtype.hasobject:
        raise ValueError(f"{name} has {size} bytes, its header asks for {wanted}")
    if size > _MOST_RATIO * member.compress_size and size > _LARGE:
        raise ValueError(f"{name} unpacks {member.compress_size} bytes to {size}: no images or statistics do")


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
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise _damaged(path, error) from None
    return array


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: no whole npz ({first_line(error)}); get the file again")
