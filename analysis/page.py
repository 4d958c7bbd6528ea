"""The parts a report is made of: sections of text, tables and pictures, and what could not be drawn and why."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import CannotDrawError, save
from analysis.fit import CannotFitError


@dataclass(frozen=True)
class Table:
    """A table of printed values; `numeric` says which columns are set to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Per column: whether every cell that is not empty begins like a number."""
        return tuple(
            all(not row[i] or row[i].lstrip("−-+")[:1].isdigit() for row in self.rows) for i in range(len(self.columns))
        )

    @property
    def frame(self) -> pd.DataFrame:
        """The printed values as a data frame, for notebooks."""
        return pd.DataFrame(list(self.rows), columns=list(self.columns))


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page; `data` is its PNG in base64."""

    name: str
    alt: str
    caption: str
    data: str


@dataclass
class Section:
    """A part of the page with a heading."""

    key: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Nothing to show."""
        return not (self.paragraphs or self.pictures or self.tables)


@dataclass
class Page:
    """A report while it is put together."""

    folder: Path
    title: str
    lead: str
    warnings: list[str] = field(default_factory=list)  #: shown above everything
    summary: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    omitted: list[tuple[str, str]] = field(default_factory=list)  #: (what, why)
    fits: dict[str, Any] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)

    def section(self, key: str, title: str) -> Section:
        """A new section at the end of the page."""
        self.sections.append(Section(key, title))
        return self.sections[-1]

    def draw(self, section: Section, name: str, alt: str, caption: str, figure: Callable[[], Figure]) -> None:
        """Draw, save and show a figure, or note why it cannot be drawn."""
        try:
            drawn = figure()
        except (CannotDrawError, CannotFitError) as error:
            self.omit(f"Figure “{name}”", str(error))
            return
        png, svg = save(drawn, self.folder / "figures", name)
        self.paths += [png, svg]
        section.pictures.append(Picture(name, alt, caption, base64.b64encode(png.read_bytes()).decode("ascii")))

    def omit(self, what: str, why: str) -> None:
        """Note something that is not in the report."""
        if (what, why) not in self.omitted:
            self.omitted.append((what, why))

    @property
    def omitted_by_reason(self) -> dict[str, list[str]]:
        """The same, grouped: reason to what it left out."""
        grouped: dict[str, list[str]] = {}
        for what, why in self.omitted:
            grouped.setdefault(why, []).append(what)
        return grouped


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
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def interval(pair: Sequence[float] | None, digits: int = 3) -> str:
    """A printed interval: "0.268 to 0.462"; empty where there is none."""
    return (
        ""
        if pair is None or any(pd.isna(end) for end in pair)
        else f"{number(pair[0], digits)} to {number(pair[1], digits)}"
    )


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, not-a-number to None, tuples to lists, dataclass fields as they are."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    if float(value) == int(value) if math.isfinite(float(value)) else False:
        return int(value)
    return float(f"{float(value):.6g}") if math.isfinite(float(value)) else None
