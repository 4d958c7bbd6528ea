"""What the answers are about: of several studies, the groups of rows that compare, and which of them leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.compare import compare_blocks
from analysis.names import listed
from analysis.slices import Slice, scaling_slices

_FEWEST = 4  # models of a law


@dataclass(frozen=True)
class Topic:
    """Studies that compare, and the slice that speaks for them."""

    studies: tuple[str, ...]
    piece: Slice

    @property
    def names(self) -> str:
        """The studies, in print."""
        return listed(*self.studies)

    @property
    def about(self) -> str:
        """The studies and how their values were measured, in print."""
        way = self.piece.group.brief if "way" in self.piece.group.table else ""
        return f"{self.names}, {way}" if way else self.names


def topics(table: pd.DataFrame, studies: Sequence[str] = ()) -> list[Topic]:
    """What the answers are about, the leading topic first.

    A table of one study has one topic, its largest slice. Of several, each goes to the group of rows measured alike
    that holds most of its models; the topics that can answer come first, in the order in which their studies are named.

    Args:
        table: rows of `analysis.table.load_study`.
        studies: in the order in which they were named; others follow.
    """
    pieces = scaling_slices(table)
    order = list(dict.fromkeys([*studies, *table["study"]]))
    if not pieces or table["study"].nunique() < 2:
        return [Topic(tuple(dict.fromkeys(table["study"])), piece) for piece in pieces[:1]]
    groups: dict[str, list[Slice]] = {}
    for piece in pieces:
        groups.setdefault(str(sorted(map(str, piece.group.conditions.items()))), []).append(piece)
    members: dict[str, list[str]] = {}
    for study in order:
        held = {key: sum(_models(piece, study) for piece in own) for key, own in groups.items()}
        if best := max(held, key=held.__getitem__) if any(held.values()) else "":
            members.setdefault(best, []).append(study)
    found = [Topic(tuple(names), _speaker(groups[key], names)) for key, names in members.items()]
    able = {topic.studies: can_answer(topic.piece) for topic in found}
    return sorted(found, key=lambda topic: (not able[topic.studies], 0 if able[topic.studies] else -topic.piece.shapes))


def ranked(table: pd.DataFrame, studies: Sequence[str]) -> pd.DataFrame:
    """A table of several studies with a column `topic`, which orders slices and groups."""
    found = topics(table, studies)
    if table["study"].nunique() < 2:
        return table
    rank = pd.Series(2 * len(found), index=table.index)
    for place, topic in reversed(list(enumerate(found))):
        rank[topic.piece.group.table.index] = 2 * place + 1
        rank[topic.piece.checkpoints.index] = 2 * place
    return table.assign(topic=rank)


def can_answer(piece: Slice) -> bool:
    """Whether a slice may carry a law, or compares blocks."""
    return piece.shapes >= _FEWEST or bool(compare_blocks(piece.siblings))


def _models(piece: Slice, study: str) -> int:
    return len(piece.table.loc[piece.table["study"] == study].drop_duplicates(["size", "patch_size"]))


def _speaker(pieces: Sequence[Slice], studies: Sequence[str]) -> Slice:
    """The slice that speaks for a group: of the first study that can answer, otherwise the largest."""
    for study in studies:
        for piece in pieces:
            if _models(piece, study) and can_answer(piece):
                return piece
    return pieces[0]
