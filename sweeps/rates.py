"""The learning rate of a cell where the sweep gives a law of the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import InputError
from harness.spec.identity import validated
from harness.spec.training import RateLaw

_RATE, _WIDTH = "training.learning_rate", "model.width"


def with_rate(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cell by their dotted names, a law of the learning rate replaced by its rate at their width.

    So a law is a way to write a sweep: cells, ids and tables hold the rate that was used.

    Raises:
        InputError: the law is not valid, or the cell has no width.
    """
    given = fields.get(_RATE)
    if not isinstance(given, Mapping):
        return dict(fields)
    law, width = validated(RateLaw, given, _RATE), fields.get(_WIDTH)
    if width is None:
        raise InputError(f"{_RATE}: a law of the width needs {_WIDTH}, which a cell does not have; allowed: a number")
    valid = isinstance(width, int) and width > 0  # if not, the only error is then about the width
    return {**fields, _RATE: law.at(width) if valid else law.base}
