"""How many values of images, latents and features are not finite, and which. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.errors import NonFiniteError


def require_finite(finite: NDArray[np.bool_], what: str, first: int = 0) -> None:
    """Check which values are finite.

    Args:
        finite: (N, ...), whether each value of N things is finite.
        what: the things, in the plural.
        first: number of the first one.

    Raises:
        NonFiniteError: not all are.
    """
    if finite.all():
        return
    bad = np.flatnonzero(np.logical_not(finite).reshape(len(finite), -1).any(axis=1))
    raise NonFiniteError(
        f"{len(bad)} of {len(finite)} {what} are not finite "
        f"({finite.size - finite.sum()} of {finite.size} values; the first is number {first + int(bad[0])})"
    )
