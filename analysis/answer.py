"""One answer of a study, and how its numbers are printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.names import listed

_MOST = 3  # answers to one question, of groups that do not compare


@dataclass(frozen=True)
class Answer:
    """One question and what the study says to it."""

    question: str
    text: str
    trust: str = ""  #: how far to trust it, and why; empty where that is no question
    about: str = ""  #: the studies that it is about; empty where there is one only
    known: bool = True  #: False: it says why it cannot be told

    @property
    def said(self) -> str:
        """What it is about, and the answer."""
        return f"{self.about}: {self.text}" if self.about else self.text

    @property
    def line(self) -> str:
        """All of it as one line of text."""
        return f"{self.question} {self.said}" + (f" Trust is {self.trust}." if self.trust else "")


@dataclass(frozen=True)
class Unfinished:
    """A study whose cells are not all done."""

    missing: int
    cells: int
    study: str  #: as `dit-harness launch` takes it

    @property
    def text(self) -> str:
        """How many, and the command that goes on."""
        be = "is" if self.missing == 1 else "are"
        return f"{self.missing} of {self.cells} cells {be} not done: dit-harness launch {self.study}"


def merged(found: Sequence[Answer], studies: Sequence[Sequence[str]]) -> list[Answer]:
    """The answers to one question, of groups that do not compare: a few that can be told, and why others cannot.

    Args:
        found: an answer a group, the leading one first.
        studies: of every group.
    """
    if len(found) < 2:
        return list(found)
    told = [answer for answer in found if answer.known][:_MOST]
    reasons: dict[str, list[str]] = {}
    for answer, names in zip(found, studies, strict=True):
        if not answer.known:
            reasons.setdefault(answer.text, []).extend(names)
    untold = next((answer for answer in found if not answer.known), None)
    if untold is None:
        return told
    rest = [replace(untold, text=text, about=listed(*names)) for text, names in reasons.items()]
    return [*told, *rest[: max(1, _MOST - len(told))]]


def minus(text: str) -> str:
    """Minus signs for the hyphens before numbers."""
    return re.sub(r"(?<=[ (])-(?=\d)", "−", text)


def cannot(question: str, why: str) -> Answer:
    """The answer where there is none."""
    return Answer(question, f"It cannot be told: {why}.", known=False)
