"""Writes the tables of docs/ that the code knows: the fields of a sweep file, the files and columns of a study.

python docs/generate.py            write them between <!-- fields --> and <!-- /fields --> of their pages
python docs/generate.py --check    exit with 1, and name the page, where one is not current
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from harness.runs import columns, layout
from harness.spec.cell import Cell
from harness.spec.data import Data, PretrainedVae, TrainedVae
from harness.spec.diffusion import Diffusion, Flow
from harness.spec.evaluation import Evaluation, TrainedExtractor
from harness.spec.fields import FieldFacts, fields_of
from harness.spec.model import DiTSpec, UNetSpec
from harness.spec.resources import Recording, Resources
from harness.spec.seeds import Seeds
from harness.spec.training import RateLaw, Training

DOCS = Path(__file__).parent

BEGIN, END = "<!-- fields -->", "<!-- /fields -->"

SECTIONS: dict[str, type[BaseModel]] = {
    "[seeds]": Seeds,
    "[model]": DiTSpec,
    '[model], network = "unet"': UNetSpec,
    "[diffusion]": Diffusion,
    '[diffusion], objective = "flow"': Flow,
    "[data]": Data,
    '[data.vae], kind = "pretrained"': PretrainedVae,
    '[data.vae], kind = "trained"': TrainedVae,
    "[training]": Training,
    "[training.learning_rate], a law of the width": RateLaw,
    "[[evaluation]]": Evaluation,
    '[[evaluation]], extractor = {kind = "trained", ...}': TrainedExtractor,
    "[recording]": Recording,
    "[resources]": Resources,
}

_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _type(field: FieldFacts) -> str:
    words = " or ".join(dict.fromkeys(_TYPES.get(kind, "table") for kind in field.types))
    return f"{f'list ({words})' if field.many else words}{', a path' if 'format' in field.marks else ''}"


def _default(field: FieldFacts) -> str:
    if "default" in field.marks:
        return str(field.marks["default"])
    if field.required:
        return "none: must be given"
    return "" if field.default is None else f"`{json.dumps(field.default)}`"


def _allowed(field: FieldFacts) -> str:
    names = [f"`{json.dumps(name)}`" for name in field.allowed]
    return ", ".join([*names, *([f"`{field.bounds}`"] if field.bounds else [])])


def _help(field: FieldFacts) -> str:
    return f"{field.marks['executor']} only: {field.help}" if "executor" in field.marks else field.help


def _fields(fields: Iterable[FieldFacts]) -> str:
    head = ("field", "type", "default", "allowed", "what it is")
    return _table(head, ((f"`{f.name}`", _type(f), _default(f), _allowed(f), _help(f)) for f in fields))


def sweeps() -> str:
    """Every field of a sweep file that a spec has."""
    parts = ["### Top level", _fields([fields_of(Cell)["seed"]])]
    for section, spec in SECTIONS.items():
        parts += [
            f"### `{section}`",
            inspect.cleandoc(spec.__doc__ or "").partition("\n\n")[0],
            _fields(fields_of(spec).values()),
        ]
    return "\n\n".join(parts)


def run_folder() -> str:
    """Every file of a study, and every column of its tables."""
    paragraphs = inspect.cleandoc(layout.__doc__ or "").split("\n\n")[1:-1]
    parts = ["## Files"]
    for paragraph in paragraphs:
        drawn = paragraph.startswith("    ")
        parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```" if drawn else paragraph)
    for name, table in columns.TABLES.items():
        parts += [
            f"## `{name}`",
            _table(
                ("column", "type", "unit", "may be 0", "what it is"),
                (
                    (f"`{c.name}`", c.type, c.unit, "yes" if c.may_be_zero else "no", c.meaning)
                    if c.type in ("integer", "number")
                    else (f"`{c.name}`", c.type, c.unit, "", c.meaning)
                    for c in table.values()
                ),
            ),
        ]
    return "\n\n".join(parts)


PAGES = {"sweeps.md": sweeps, "run-folder.md": run_folder}


def main() -> None:
    """Write the pages, or check them."""
    stale = []
    for name, write in PAGES.items():
        page = DOCS / name
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        text = f"{before}{BEGIN}\n\n{write()}\n\n{END}{after}"
        if text == page.read_text(encoding="utf-8"):
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"not current: {', '.join(stale)}; next: python docs/generate.py")


if __name__ == "__main__":
    main()
