"""Values in print: numbers, intervals, flags; and values as fits.json holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd


def number(value: Any, digits: int = 4) -> str:
    """A printed number: `digits` significant digits, thousands separated, empty where missing."""
    if value is None or pd.isna(value):
        return ""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    short = f"{value:.{digits}g}"
    return f"{float(short):,.0f}" if abs(float(short)) >= 10 ** (digits - 1) else short


def text(value: Any) -> str:
    """A printed value: a text as it is, a number, an interval of two numbers, flags as a list or "none"."""
    if isinstance(value, tuple):
        return interval(value) if value and not isinstance(value[0], str) else "; ".join(value) or "none"
    return value if isinstance(value, str) else number(value)


def interval(pair: Sequence[float] | None, digits: int = 3) -> str:
    """A printed interval: "0.268 to 0.462"; empty where there is none."""
    return "" if pair is None or pd.isna(list(pair)).any() else " to ".join(number(end, digits) for end in pair)


class Unrounded(float):
    """A number that `rounded` leaves as it is: a constant of a law, whose digits hang together."""


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, not-a-number to None, tuples to lists, dataclass fields as they are."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, bool | str):
        return value
    if value is None or pd.isna(value) or not math.isfinite(value):
        return None
    if isinstance(value, Unrounded):
        return float(value)
    return int(value) if value == int(value) else float(f"{value:.6g}")
