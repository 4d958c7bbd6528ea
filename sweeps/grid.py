"""A sweep file (TOML) and the grid of cells it describes. No torch; reads only the file and what it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from harness.errors import InputError, did_you_mean
from harness.spec.cell import Cell
from harness.spec.evaluation import EXTRACTORS, Evaluation
from harness.spec.extension import Extension
from harness.spec.identity import describe_validation_error, spec_id, validated
from harness.spec.resources import Recording, Resources
from sweeps.fields import SECTIONS, Fields, Setting, table_of, tables_of
from sweeps.protocols import Origin, Protocol, check_evaluation, named, protocols
from sweeps.protocols import evaluations as asked
from sweeps.rates import with_rate
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


class NamedCell(NamedTuple):
    """A cell and its readable name; the name is for people, the id of the cell is its identity."""

    name: str
    cell: Cell


@dataclass(frozen=True)
class Sweep:
    """A validated sweep file.

    `axes` maps each axis to its settings, in the order of the file; the cells are their product over `base`.
    """

    path: Path
    study: str
    title: str
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Setting, ...]]
    exclude: tuple[Mapping[str, tuple[Any, ...]], ...]
    evaluations: tuple[Evaluation, ...]
    origins: tuple[Origin, ...]  # one per evaluation
    protocols: Mapping[str, Protocol]
    recording: Recording
    resources: Resources
    rules: tuple[Rule, ...] = ()  # which cells run on other resources
    extensions: tuple[Extension, ...] = ()  # the user's own files that the sweep names

    def cells(self) -> Iterator[NamedCell]:
        """The cells of the grid, lazily, the last axis fastest.

        Raises:
            InputError: a combination is not a valid cell.
        """
        varying = [frozenset().union(*settings) for settings in self.axes.values()]
        for combination in product(*self.axes.values()):
            fields = dict(self.base)
            for setting in combination:
                fields.update(setting)
            if any(all(fields.get(k) in v for k, v in rule.items()) for rule in self.exclude):
                continue
            try:
                cell = Cell.model_validate(_nested(with_rate(fields)))
            except ValidationError as error:
                point = _point(error, {k: v for setting in combination for k, v in setting.items()})
                raise InputError(f"{self.path}: {describe_validation_error(error)}{point}") from None
            yield NamedCell(_readable_name(cell, varying), cell)

    def asked_of(self, cell: Cell) -> list[tuple[Origin, Evaluation]]:
        """The evaluations of a cell, with their extractors filled in, and where the file asks for each.

        They are those whose sampler its objective has, so that one sweep can sample several objectives.
        """
        samplers = cell.diffusion.samplers
        pairs = zip(self.origins, self.evaluations, strict=True)
        return [(origin, e.resolved(cell.data)) for origin, e in pairs if e.sampler in samplers]

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
        for _, cell in self.cells():
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
        given = {name: value for rule in self.rules if rule.fits(cell) for name, value in rule.resources.items()}
        if not given:
            return self.resources
        keys = " and ".join(rule.key for rule in self.rules if rule.fits(cell))
        return validated(Resources, {**self.resources.model_dump(), **given}, keys)

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
        for _, cell in changed.cells():
            changed.resources_of(cell)
        return changed


def _point(error: ValidationError, settings: Setting) -> str:
    """Where in the grid an error is, by the settings that have to do with it; empty where no axis has."""
    shown: set[str] = set()
    for item in error.errors():
        # what is missing may be due to another field of its table
        place = ".".join(map(str, item["loc"][: -1 if item["type"] == "missing" else None]))
        below = {field for field in settings if not place or f"{field}.".startswith(f"{place}.")}
        if item["type"] == "value_error":  # of several fields together, which its message names
            words = set(re.findall(r"\w+", item["msg"]))
            below = {field for field in below if field.rpartition(".")[2] in words}
        shown |= below
    point = ", ".join(f"{field}={value}" for field, value in settings.items() if field in shown)
    return f" (at {point})" if point else ""


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
    document = read_toml(path)
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
    known = protocols(table_of(document, "protocol"))
    resources = table_of(document, "resources")
    own_rules = rules(tables_of(resources, "for", "resources.for"), fields)
    resources.pop("for", None)
    evaluations, origins = _evaluations(tables_of(document, "evaluation"), known)
    return Sweep(
        path=path,
        study=study,
        title=title,
        base=base,
        axes=axes,
        exclude=tuple(_exclusion(rule, i, fields) for i, rule in enumerate(tables_of(document, "exclude"), 1)),
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
        if cell.id in names:
            raise InputError(f"grid: {name} and {names[cell.id]} are the same cell; every cell once")
        names[cell.id] = name
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
    sources = {cell.data for _, cell in sweep.cells()}
    for origin, evaluation in zip(sweep.origins, sweep.evaluations, strict=True):
        strays = {line for data in sources if origin.protocol for line in origin.protocol.strays(data)}
        lines += [f"{origin.key}: {line}" for line in sorted(strays)]
        for name in sorted({evaluation.resolved(data).extractor or "" for data in sources}):
            dims = EXTRACTORS.facts(name).dims
            needed = 5 * dims
            if evaluation.samples < needed:
                lines.append(
                    f"{origin.key}: {evaluation.samples} samples for {dims} dimensions of {name}: "
                    f"the distance is biased upwards (bias of order 1/N); take at least {needed}"
                )
    return list(dict.fromkeys(lines))


def _readable_name(cell: Cell, varying: Sequence[frozenset[str]]) -> str:
    """What differs between cells; `varying` are the fields that each axis sets."""
    model = cell.model
    parts = [model.readable_name]
    follows = {f"model.{field}": f"model.{other}" for field, other in model.follows.items()}
    varied = {field for axis in varying for field in axis if follows.get(field) not in axis}
    for field in sorted(varied - {f"model.{name}" for name in model.named}):
        section, _, leaf = field.rpartition(".")
        if section == "model" and not hasattr(model, leaf):  # of another network
            continue
        value = getattr(getattr(cell, section), leaf) if section else getattr(cell, leaf)
        if isinstance(value, BaseModel):  # a VAE
            value = spec_id(value)[:6]
        parts.append(str(value) if isinstance(value, str) else f"{leaf}{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"model": {}}
    for field, value in fields.items():
        section, _, leaf = field.rpartition(".")
        (out.setdefault(section, {}) if section else out)[leaf] = value
    return out
