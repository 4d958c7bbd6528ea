"""Tables that fit a terminal. Columns that find no room are left out, and named below; a number is never cut."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import strip_control_codes
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

#: A row of a table: value by column.
Row = Mapping[str, Any]

#: Between two columns.
_GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading; one of several words may take two lines.
        text: what a row shows in it.
        justify: "right" for numbers.
        rank: how much it matters; where there is too little room, the lowest goes first.
        least: a text of more than this many letters may take several lines; 0: a value is never broken.
    """

    title: str
    text: Callable[[Row], str | Text]
    justify: Literal["left", "right"] = "left"
    rank: int = 0
    least: int = 0


@dataclass(frozen=True)
class _Shown:
    """A column with its texts, and the widths it can have."""

    column: Column
    texts: list[str | Text]

    @cached_property
    def widths(self) -> list[int]:
        """Of the texts."""
        return [cell_len(_plain(text)) for text in self.texts]

    @cached_property
    def whole(self) -> int:
        """The width at which nothing is broken but the title."""
        return max(_width_of(_in_two_lines(self.column.title)), *self.widths, 0)

    @property
    def least(self) -> int:
        """The least width."""
        title = _width_of(_in_two_lines(self.column.title))
        return min(self.whole, max(title, self.column.least)) if self.column.least else self.whole

    @property
    def is_empty(self) -> bool:
        """Whether no row has a value."""
        return not any(map(_plain, self.texts))

    @property
    def name(self) -> str:
        """Its title, with the value where all rows share one."""
        values = set(map(_plain, self.texts))
        return (
            f"{self.column.title} ({values.pop()})" if len(values) == 1 and len(self.texts) > 1 else self.column.title
        )


@dataclass(frozen=True)
class FittedTable:
    """A table for a terminal.

    Attributes:
        title: above it.
        columns: in their order; those without a value in any row are not shown.
        rows: the rows.
        caption: below it.
        all_at: where the columns are that are left out.
        wide: leave out none, however wide the table is.
        one_line: every row takes one line; long texts are cut at the end of a word.
        head: with its title, its headings, and the names of what is left out.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str
    all_at: str = "--wide shows all"
    wide: bool = False
    one_line: bool = False
    head: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, table, caption, and what is left out."""
        filled = [_Shown(column, [_cleaned(column.text(row)) for row in self.rows]) for column in self.columns]
        filled = [shown for shown in filled if not shown.is_empty] or filled[:1]
        kept = filled if self.wide else _fitting(filled, options.max_width)
        widths = _widths(kept, options.max_width)
        if self.head:
            yield Text(self.title, "table.title")
        options = options.update(width=sum(widths) + _GAP * len(widths))
        if self.head or not self.rows:
            yield from console.render(self._table(kept, widths, [], head=self.head), options)
        sides = [shown.column.justify for shown in kept]
        for texts, needed in zip(
            zip(*(shown.texts for shown in kept), strict=True),
            zip(*(shown.widths for shown in kept), strict=True),
            strict=True,
        ):
            rooms = [width - need for width, need in zip(widths, needed, strict=True)]
            # rich lays out what takes several lines; of every row it would take minutes in a large study
            if min(rooms) < 0 or any("\n" in _plain(text) for text in texts):
                yield from console.render(self._table(kept, widths, [texts], head=False), options)
            else:
                yield from _line(console, texts, sides, rooms)
        yield Text(self.caption, "table.caption")
        if self.head and (out := [shown.name for shown in filled if shown not in kept]):
            yield Text(f"columns not shown: {', '.join(out)}; {self.all_at}", "table.caption")

    def _table(
        self, kept: Sequence[_Shown], widths: Sequence[int], rows: Sequence[Sequence[str | Text]], *, head: bool
    ) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            show_header=head,
            pad_edge=False,
            collapse_padding=True,
            header_style="bold",
        )
        for shown, width in zip(kept, widths, strict=True):
            title = shown.column.title if cell_len(shown.column.title) <= width else _in_two_lines(shown.column.title)
            table.add_column(Text(title), justify=shown.column.justify, overflow="fold", width=width)
        for texts in rows:
            table.add_row(*(self._cut(_as_text(text), width) for text, width in zip(texts, widths, strict=True)))
        return table

    def _cut(self, text: Text, width: int) -> Text:
        if not self.one_line or cell_len(text.plain) <= width:
            return text
        short = textwrap.shorten(text.plain, width, placeholder=" …")
        return Text(short if short.strip(" …") else f"{text.plain[: width - 1]}…", text.style)


def _line(
    console: Console, texts: Sequence[str | Text], sides: Sequence[str], rooms: Sequence[int]
) -> Iterator[Segment]:
    """A row in one line; `rooms` is what each text leaves free of its column."""
    line = ""
    for number, (text, side, room) in enumerate(zip(texts, sides, rooms, strict=True)):
        before, after = (room, 0) if side == "right" else (0, room)
        line += " " * ((_GAP if number else 0) + before)
        if isinstance(text, Text):
            yield Segment(line)
            yield from text.render(console)
            line = ""
        else:
            line += text
        line += " " * after
    yield Segment(line)
    yield Segment.line()


def _cleaned(value: str | Text) -> str | Text:
    """The value without control codes, which would move the terminal's cursor."""
    return value if isinstance(value, Text) or value.isprintable() else strip_control_codes(value)


def _plain(value: str | Text) -> str:
    return value.plain if isinstance(value, Text) else value


def _as_text(value: str | Text) -> Text:
    """The value as it is: rich takes brackets and colons in a plain string, which may be the user's, for markup."""
    return Text(value) if isinstance(value, str) else value


def _width_of(lines: str) -> int:
    return max(map(cell_len, lines.split("\n")))


def _in_two_lines(title: str) -> str:
    """A title of several words in the two lines that are narrowest."""
    words = title.split(" ")
    ways = [f"{' '.join(words[:at])}\n{' '.join(words[at:])}" for at in range(1, len(words))]
    return min(ways, key=_width_of, default=title)


def _fitting(shown: Sequence[_Shown], width: int) -> list[_Shown]:
    """The columns that fit together, without those that matter least; at least one."""
    kept = list(shown)
    while len(kept) > 1 and sum(one.least for one in kept) + _GAP * (len(kept) - 1) > width:
        kept.remove(min(kept, key=lambda one: one.column.rank))
    return kept


def _widths(kept: Sequence[_Shown], width: int) -> list[int]:
    """The widths of the columns: what room is left goes to texts that would take several lines, the first one first."""
    widths = [min(one.least, width) for one in kept]
    room = width - sum(widths) - _GAP * (len(kept) - 1)
    for number, one in enumerate(kept):
        more = max(0, min(room, one.whole - widths[number]))
        widths[number] += more
        room -= more
    return widths
