"""A sweep that a command made, as the text of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from harness.spec.cell import Cell
from sweeps.fields import SECTIONS, Setting
from sweeps.grid import Sweep
from sweeps.toml import table_lines, toml_lines


def text_of(sweep: Sweep, command: str) -> str:
    """The sweep as a file; `command` wrote it. Its evaluations are written out, without the names of protocols."""
    tables: dict[str, Mapping[str, Any]] = {section: _below(section, sweep.grid.base) for section in SECTIONS}
    tables["recording"] = _given(sweep.recording)
    tables["resources"] = _given(sweep.resources)
    top: dict[str, Any] = {"title": sweep.title}
    if sweep.extensions:
        top["extend"] = [extension.name for extension in sweep.extensions]
    if "seed" in sweep.grid.base:
        top["seed"] = sweep.grid.base["seed"]
    lines = [f"# Written by `{command}`.", *toml_lines(top), "", "[grid]"]
    lines += table_lines({axis: [*settings] for axis, settings in sweep.grid.axes.items()})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *toml_lines(table)] if table else []
    for evaluation in sweep.evaluations:
        lines += ["", "[[evaluation]]", *toml_lines(_given(evaluation))]
    for rule in sweep.rules:
        conditions = {condition.field: [value for value, _ in condition.allowed] for condition in rule.conditions}
        lines += ["", "[[resources.for]]", *toml_lines({**conditions, **rule.resources})]
    return "\n".join(lines) + "\n"


def settings_of(cell: Cell, *, without: Mapping[str, Any]) -> Setting:
    """The fields of a cell that are not the defaults, by dotted name; `without` are those left out, as pydantic's."""
    dumped = cell.model_dump(exclude_defaults=True, exclude=dict(without))
    return {
        (f"{section}.{name}" if name else section): value
        for section, fields in dumped.items()
        for name, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }


def _below(section: str, fields: Mapping[str, Any]) -> Setting:
    return {name.partition(".")[2]: value for name, value in fields.items() if name.partition(".")[0] == section}


def _given(spec: BaseModel) -> dict[str, Any]:
    return spec.model_dump(exclude_defaults=True)
