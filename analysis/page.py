"""The parts of a report: sections of text, tables and pictures, and what could not be drawn and why."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.answer import Answer
from analysis.figures.style import CannotDrawError, Drawing, ModelKey, save
from analysis.fit.common import CannotFitError
from analysis.numbers import text
from analysis.side_by_side import side_by_side

_FEW_FIGURES = 4  # below this a second process is not worth its start


@dataclass(frozen=True)
class Table:
    """A table of printed values; `numeric` says which columns are right-aligned."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, caption: str, columns: str, rows: Iterable[Iterable[Any]]) -> Table:
        """A table of values as `text` prints them; `columns` are its headings, separated by " | "."""
        return cls(caption, tuple(columns.split(" | ")), tuple(tuple(text(value) for value in row) for row in rows))

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column: whether every cell that is not empty begins like a number."""
        cells = ([row[index] for row in self.rows] for index in range(len(self.columns)))
        return tuple(all(not cell or cell.lstrip("−-+")[:1].isdigit() for cell in column) for column in cells)

    @property
    def frame(self) -> pd.DataFrame:
        """The printed values as a data frame, for notebooks."""
        return pd.DataFrame(list(self.rows), columns=list(self.columns))


@dataclass(frozen=True)
class Picture:
    """A figure of the page; `data` is its PNG in base64, empty until it is drawn."""

    name: str
    alt: str
    caption: str
    figure: Callable[[], Drawing]  #: draws it; called once, in this or another process
    heading: str = ""
    data: str = ""


@dataclass
class Section:
    """A part of the page with a heading."""

    key: str
    title: str
    opening: str = ""  #: one sentence: what the section shows
    paragraphs: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass
class Page:
    """A report that is being put together."""

    folder: Path
    title: str
    lead: str
    key: ModelKey | None = None  #: how the models look, in all figures
    answers: list[Answer] = field(default_factory=list)
    ways: dict[str, str] = field(default_factory=dict)  #: letter to conditions of measurement; one way has no letter
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)  #: what else the first screen says
    front: list[Picture] = field(default_factory=list)  #: the figures that show the answers
    front_names: tuple[str, ...] = ()  #: those of the verdict on blocks, by preference; empty where there is none
    sections: list[Section] = field(default_factory=list)
    omitted: list[tuple[str, str]] = field(default_factory=list)  #: (what, why)
    fits: dict[str, Any] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    sketches: list[tuple[Section, Picture]] = field(default_factory=list)  #: still to be drawn

    def section(self, key: str, title: str, opening: str = "") -> Section:
        """A new section at the end of the page."""
        self.sections.append(Section(key, title, opening))
        return self.sections[-1]

    def draw(self, section: Section, name: str, alt: str, caption: str, figure: Callable[[], Drawing]) -> None:
        """Add a figure; `finish` draws, saves and shows it, or notes why it cannot be drawn."""
        self.sketches.append((section, Picture(name, alt, caption, figure)))

    def finish(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Draw all figures, on two cores if there are two: drawing takes most of the time of a report.

        `progress` is called with the figures done, and all of them.
        """
        sketches, self.sketches = self.sketches, []
        results = _draw_all([picture for _, picture in sketches], self.folder / "figures")
        for done, ((section, picture), drawn) in enumerate(zip(sketches, results, strict=True), 1):
            progress(done, len(sketches))
            if isinstance(drawn, str):
                self.omit(f"Figure “{picture.name}”", drawn)
                continue
            self.paths += drawn.paths
            data = base64.b64encode(drawn.paths[0].read_bytes()).decode("ascii")
            section.pictures.append(replace(picture, data=data, heading=drawn.heading))

    def move_to_front(self, names: Sequence[str]) -> None:
        """Show the first two of these figures that were drawn beside the answers, instead of in their sections."""
        drawn = {picture.name: (section, picture) for section in self.sections for picture in section.pictures}
        for section, picture in [drawn[name] for name in dict.fromkeys(names) if name in drawn][:2]:
            section.pictures.remove(picture)
            self.front.append(picture)

    def omit(self, what: str, why: str) -> None:
        """Note something that is not in the report."""
        if (what, why) not in self.omitted:
            self.omitted.append((what, why))

    @property
    def answers_by_question(self) -> dict[str, list[Answer]]:
        """The answers to every question, in their order; several where several studies answer apart."""
        return {asked.question: [a for a in self.answers if a.question == asked.question] for asked in self.answers}

    @property
    def omitted_by_reason(self) -> dict[str, list[str]]:
        """What is not in the report, grouped by reason."""
        return {why: [what for what, reason in self.omitted if reason == why] for _, why in self.omitted}


@dataclass(frozen=True)
class _Drawn:
    paths: tuple[Path, ...]  #: the PNG first
    heading: str


def _draw_all(pictures: list[Picture], folder: Path) -> Iterator[_Drawn | str]:
    """The files of every figure, in order; for one that cannot be drawn, the reason."""
    tasks = [partial(_draw_one, picture, folder) for picture in pictures]
    return side_by_side(tasks) if len(tasks) > _FEW_FIGURES else (task() for task in tasks)


def _draw_one(picture: Picture, folder: Path) -> _Drawn | str:
    try:
        figure = picture.figure()
        return _Drawn(save(figure, folder, picture.name), figure.heading)
    except (CannotDrawError, CannotFitError) as error:
        return str(error)
