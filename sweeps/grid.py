"""A sweep file (TOML) and the grid of cells it describes. No torch; reads only the file and what it names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import InputError, did_you_mean
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation, extractor_name, facts_of
from harness.spec.extension import Extension
from harness.spec.identity import validated
from harness.spec.resources import Recording, Resources
from sweeps.cells import Grid, NamedCell
from sweeps.fields import SECTIONS, Fields, Setting, table_of, tables_of
from sweeps.protocols import Origin, Protocol, check_evaluation, named, protocols
from sweeps.protocols import evaluations as asked
from sweeps.rules import Rule, rules
from sweeps.toml import read_toml

#: The folder beside the studies that holds the runs of all of them.
RESERVED_NAME = "runs"

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_TOP_LEVEL = (
    "title",
    "extend",
    "seed",
    "grid",
    *SECTIONS,
    "protocol",
    "evaluation",
    "recording",
    "exclude",
    "resources",
)


@dataclass(frozen=True)
class Sweep:
    """A validated sweep file."""

    path: Path
    study: str
    title: str
    grid: Grid
    evaluations: tuple[Evaluation, ...]
    origins: tuple[Origin, ...]  # one per evaluation
    protocols: Mapping[str, Protocol]
    recording: Recording
    resources: Resources
    rules: tuple[Rule, ...] = ()  # which cells run on other resources
    extensions: tuple[Extension, ...] = ()  # the user's own files that the sweep names
    #: What was found for one cell and holds for many: evaluations by data and objective, resources by the rules.
    _asked: dict[tuple[Data, str], list[tuple[Origin, Evaluation]]] = dataclasses.field(
        default_factory=dict, init=False, compare=False
    )
    _resources: dict[tuple[str, ...], Resources] = dataclasses.field(default_factory=dict, init=False, compare=False)

    def cells(self) -> Iterator[NamedCell]:
        """The cells of the grid, the last axis fastest.

        Raises:
            InputError: a combination is not a valid cell.
        """
        return iter(self.grid.cells)

    def asked_of(self, cell: Cell) -> list[tuple[Origin, Evaluation]]:
        """The evaluations of a cell, with their extractors filled in, and where the file asks for each.

        They are those whose sampler its objective has, so that one sweep can sample several objectives.
        """
        key = cell.data, cell.diffusion.objective
        if key not in self._asked:
            samplers = cell.diffusion.samplers
            pairs = zip(self.origins, self.evaluations, strict=True)
            self._asked[key] = [(origin, e.resolved(cell.data)) for origin, e in pairs if e.sampler in samplers]
        return self._asked[key]

    def evaluations_of(self, cell: Cell) -> tuple[Evaluation, ...]:
        """As `asked_of`, without the places."""
        return tuple(evaluation for _, evaluation in self.asked_of(cell))

    def check_evaluations(self, key: str = "") -> None:
        """Check that every evaluation fits all cells that it is for, and that every cell has one if there are any.

        Args:
            key: what messages call the evaluations; by default the place in the file.

        Raises:
            InputError: one line that says what is allowed.
        """
        objectives: dict[str, tuple[str, ...]] = {}
        for cell in {(c.data, c.diffusion, c.training.label_dropout): c for _, c in self.cells()}.values():
            objectives[cell.diffusion.objective] = cell.diffusion.samplers
            every = zip(self.origins, self.evaluations, strict=True)
            for origin, evaluation in self.asked_of(cell) or every:
                check_evaluation(key or origin.key, evaluation, cell)
        allowed = [sampler for samplers in objectives.values() for sampler in samplers]
        for origin, evaluation in zip(self.origins, self.evaluations, strict=True):
            if evaluation.sampler not in allowed:
                raise InputError(
                    f"{key or origin.key}.sampler: unknown sampler {evaluation.sampler!r} for objective "
                    f"{' or '.join(objectives)}; allowed: {', '.join(allowed)}"
                )

    def resources_of(self, cell: Cell) -> Resources:
        """What a cell runs on: the sweep's resources, and in their place those of its rules, the last one first.

        Raises:
            InputError: they contradict each other.
        """
        fitting = [rule for rule in self.rules if rule.fits(cell)]
        given = {name: value for rule in fitting for name, value in rule.resources.items()}
        if not given:
            return self.resources
        keys = tuple(rule.key for rule in fitting)
        if (found := self._resources.get(keys)) is None:
            found = validated(Resources, {**self.resources.model_dump(), **given}, " and ".join(keys))
            self._resources[keys] = found
        return found

    def with_resources(self, given: Mapping[str, Any]) -> Sweep:
        """The sweep with these resources for every cell.

        Raises:
            InputError: a value is not allowed, or contradicts another one.
        """
        if not given:
            return self
        fields = {**self.resources.model_dump(), **given}
        changed = replace(
            self,
            resources=validated(Resources, fields, "command line, resources"),
            rules=tuple(rule.without(given) for rule in self.rules),
        )
        for _, cell in changed.cells() if changed.rules else ():
            changed.resources_of(cell)
        return changed


def study_name(argument: str) -> str:
    """The name of a study: the stem of a sweep file, or the argument itself.

    Raises:
        InputError: the name cannot be the name of a folder.
    """
    name = Path(argument).stem if argument.endswith(".toml") else argument
    if not STUDY_NAME.fullmatch(name) or name == RESERVED_NAME:
        raise InputError(
            f"{argument}: {name!r} is no study name; allowed: letters, digits, '.', '_', '-', beginning with a letter "
            f"or digit and without a path (or give the path of a .toml sweep file), but not {RESERVED_NAME!r}"
        )
    return name


def load_sweep(path: Path, study: str | None = None) -> Sweep:
    """Read and validate a sweep file; every cell is checked before anything is returned.

    Raises:
        InputError: one line naming file, key, what is wrong and what is allowed.
    """
    study = study or study_name(str(path) if path.suffix == ".toml" else f"{path}.toml")
    return sweep_of(path, study, read_toml(path))


def sweep_of(path: Path, study: str, document: dict[str, Any]) -> Sweep:
    """The sweep of a document, as `load_sweep` reads it from the file `path`.

    Raises:
        InputError: as `load_sweep`.
    """
    try:
        sweep = _sweep(path, study, document)
        _check_cells(sweep)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    return sweep


def _sweep(path: Path, study: str, document: dict[str, Any]) -> Sweep:
    for key in document:
        if key not in _TOP_LEVEL:
            raise InputError(f"{key}: unknown key{did_you_mean(key, _TOP_LEVEL)}; allowed: {', '.join(_TOP_LEVEL)}")
    title = document.get("title", study)
    if not isinstance(title, str):
        raise InputError(f"title: should be a text (got {title!r})")
    extensions = _extensions(path.parent, document.get("extend", []))
    fields = Fields.of(document)
    base: dict[str, Any] = {}
    for section in SECTIONS:
        table = table_of(document, section)
        base |= fields.settings({f"{section}.{key}": value for key, value in table.items()})
    if "seed" in document:
        base["seed"] = document["seed"]
    axes = _axes(table_of(document, "grid"), base, fields)
    exclude = tuple(_exclusion(rule, i, fields) for i, rule in enumerate(tables_of(document, "exclude"), 1))
    known = protocols(table_of(document, "protocol"))
    resources = table_of(document, "resources")
    own_rules = rules(tables_of(resources, "for", "resources.for"), fields)
    resources.pop("for", None)
    evaluations, origins = _evaluations(tables_of(document, "evaluation"), known)
    return Sweep(
        path=path,
        study=study,
        title=title,
        grid=Grid(path, base, axes, exclude),
        evaluations=evaluations,
        origins=origins,
        protocols=known,
        recording=validated(Recording, table_of(document, "recording"), "recording"),
        resources=validated(Resources, resources, "resources"),
        rules=own_rules,
        extensions=extensions,
    )


def _extensions(folder: Path, names: Any) -> tuple[Extension, ...]:
    """Load the user's own files; the sweep can then name what they define."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name.endswith(".py") for name in names):
        raise InputError(f'extend: should be a list of Python files, for example ["my_block.py"] (got {names!r})')
    found = []
    for name in names:
        if Path(name).is_absolute() or name.startswith("~") or ".." in Path(name).parts:
            raise InputError(f"extend: {name}; allowed: files below the sweep file's folder")
        try:
            found.append(Extension(name, (folder / name).read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"extend: {folder / name} cannot be read: {error}") from None
        found[-1].load()
    return tuple(found)


def _axes(grid: dict[str, Any], base: Mapping[str, Any], fields: Fields) -> dict[str, tuple[Setting, ...]]:
    if not grid:
        raise InputError("grid: is empty; name at least one axis, for example depth = [2, 4]")
    axes: dict[str, tuple[Setting, ...]] = {}
    seen: dict[str, str] = {}
    for axis, values in grid.items():
        key = f"grid.{axis}"
        if not isinstance(values, list):
            raise InputError(f"{key}: should be a list of values (got {values!r})")
        if not values:
            raise InputError(f"{key}: is empty; give at least one value")
        for i, value in enumerate(values):
            if any(type(value) is type(other) and value == other for other in values[:i]):
                raise InputError(f"{key}: {value!r} stands twice; every value once")
        tables = [value if isinstance(value, dict) else {axis: value} for value in values]
        if {} in tables:
            raise InputError(f"{key}: a table sets no field")
        settings = tuple(fields.settings(table, key) for table in tables)
        _check_alike(settings, key)
        for field in {field: None for setting in settings for field in setting}:
            if field in base:
                raise InputError(f"{key}: {field} is set outside the grid too; keep one of them")
            if field in seen:
                raise InputError(f"{key}: {field} is set by grid.{seen[field]} too; keep one of them")
            seen[field] = axis
        axes[axis] = settings
    return axes


def _check_alike(settings: Sequence[Setting], key: str) -> None:
    """Check that the tables of an axis set the same fields: those of one network, where they name several."""
    first: dict[Any, Setting] = {}
    for setting in settings:
        alike = first.setdefault(network := setting.get("model.network"), setting)
        if setting.keys() != alike.keys():
            whose = f" of network {network}" if len(first) > 1 else ""
            raise InputError(f"{key}: every table{whose} should set the same fields ({', '.join(alike)})")


def _exclusion(rule: dict[str, Any], number: int, fields: Fields) -> dict[str, tuple[Any, ...]]:
    key = f"exclude {number}"
    if not rule:
        raise InputError(f"{key}: sets no field, so it would drop every cell")
    out: dict[str, tuple[Any, ...]] = {}
    for field, value in rule.items():
        for inner in value if isinstance(value, list) else [value]:
            for name, single in fields.setting(field, inner, f"{key}.{field}").items():
                out[name] = (*out.get(name, ()), single)
    return out


def _evaluations(
    tables: list[dict[str, Any]], known: Mapping[str, Protocol]
) -> tuple[tuple[Evaluation, ...], tuple[Origin, ...]]:
    """The evaluations of the sweep, and where the file asks for each; none if it only trains."""
    evaluations: list[Evaluation] = []
    origins: list[Origin] = []
    for i, table in enumerate(tables, 1):
        key, own = f"evaluation {i}", dict(table)
        protocol = named(own.pop("protocol"), known, f"{key}.protocol") if "protocol" in own else None
        for evaluation in asked({**protocol.fields, **own} if protocol else own, key):
            if any(evaluation.id == other.id for other in evaluations):
                raise InputError(f"{key}: stands twice; every evaluation once")
            evaluations.append(evaluation)
            origins.append(Origin(key, protocol))
    return tuple(evaluations), tuple(origins)


def _check_cells(sweep: Sweep) -> None:
    """Check every cell and the rules for resources, so that no run starts while one of them is invalid."""
    names: dict[str, str] = {}
    longest = 0
    for name, cell in sweep.cells():
        if (other := names.setdefault(cell.id, name)) is not name:
            raise InputError(f"grid: {name} and {other} are the same cell; every cell once")
        longest = max(longest, cell.training.steps)
        sweep.resources_of(cell)
    if not names:
        raise InputError("grid: is empty; exclude drops every cell")
    sweep.check_evaluations()
    cells = [cell for _, cell in sweep.cells()]
    for rule in sweep.rules:
        rule.check(cells)
    steps = [(f"{origin.key}.at", e.at) for origin, e in zip(sweep.origins, sweep.evaluations, strict=True)]
    for key, given in (*steps, ("recording.loss_steps", sweep.recording.loss_steps)):
        if any(not 0 < step <= longest for step in given):
            raise InputError(f"{key}: {list(given)}; allowed: steps from 1 to {longest}")


def warnings(sweep: Sweep) -> list[str]:
    """What is allowed but should be known before the sweep starts, one line each."""
    lines = []
    sources = sweep.grid.sources
    for origin, evaluation in zip(sweep.origins, sweep.evaluations, strict=True):
        strays = {line for data in sources if origin.protocol for line in origin.protocol.strays(data)}
        lines += [f"{origin.key}: {line}" for line in sorted(strays)]
        found = {(evaluation.resolved(data).extractor, data.image_shape) for data in sources}
        named = {extractor_name(extractor): facts_of(extractor, shape) for extractor, shape in found if extractor}
        for name, facts in sorted(named.items()):
            dims = facts.dims
            needed = 5 * dims
            if evaluation.samples < needed:
                lines.append(
                    f"{origin.key}: {evaluation.samples} samples for {dims} dimensions of {name}: "
                    f"the distance is biased upwards (bias of order 1/N); take at least {needed}"
                )
    return list(dict.fromkeys(lines))
