"""Protocols (named sets of an evaluation's fields), and the evaluations that a table asks for and that fit a cell."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import InputError
from harness.spec.cell import Cell
from harness.spec.data import Data, PretrainedVae
from harness.spec.evaluation import Evaluation, check_fits
from harness.spec.identity import validated

BUILT_IN = Path(__file__).with_name("protocols.toml")


@dataclass(frozen=True)
class Protocol:
    """A named set of an evaluation's fields, and what it is meant for.

    Attributes:
        name: as the field `protocol` of an evaluation gives it.
        fields: by name; a list stands for several values.
        data: data sets that it is meant for; empty: any.
        vae: name of the autoencoder that it is meant for; None: any.
    """

    name: str
    fields: Mapping[str, Any]
    data: tuple[str, ...] = ()
    vae: str | None = None

    def strays(self, data: Data) -> Iterator[str]:
        """Why the protocol is not meant for this data, one line each."""
        if self.data and data.name not in self.data:
            yield f"protocol {self.name} is meant for {', '.join(self.data)}, not for {data.name}"
        vae = data.vae
        found = vae.name if isinstance(vae, PretrainedVae) else "none" if vae is None else "one trained here"
        if self.vae is not None and Path(found).name != Path(self.vae).name:
            yield f"protocol {self.name} decodes with {self.vae}, the sweep's autoencoder is {found}; values may differ"


class Origin(NamedTuple):
    """Where a sweep asks for an evaluation."""

    key: str  # "evaluation 2", as in messages
    protocol: Protocol | None


def protocols(own: Mapping[str, Any]) -> dict[str, Protocol]:
    """The protocols by name: those of protocols.toml, then the sweep's own tables.

    Raises:
        InputError: a name is taken, or a field is wrong.
    """
    built_in = tomllib.loads(BUILT_IN.read_text(encoding="utf-8"))
    if taken := sorted(built_in.keys() & own.keys()):
        allowed = f"({', '.join(built_in)}); choose another"
        raise InputError(f"protocol.{taken[0]}: this name is taken by a built-in protocol {allowed}")
    return {name: _protocol(name, table) for name, table in (*built_in.items(), *own.items())}


def _protocol(name: str, table: Any) -> Protocol:
    """A protocol from its table; its fields are checked to make valid evaluations."""
    key = f"protocol.{name}"
    if not isinstance(table, dict):
        raise InputError(f"{key}: should be a table [{key}] (got {table!r})")
    fields = dict(table)
    data, vae = fields.pop("data", []), fields.pop("vae", None)
    evaluations(fields, key)
    if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
        raise InputError(f"{key}.data: should be a list of names of data sets (got {data!r})")
    if vae is not None and not isinstance(vae, str):
        raise InputError(f"{key}.vae: should be the name of an autoencoder (got {vae!r})")
    return Protocol(name, fields, tuple(data), vae)


def named(name: Any, known: Mapping[str, Protocol], key: str) -> Protocol:
    """The protocol of this name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{key}: unknown protocol {name!r}; allowed: {', '.join(known)}")
    return known[name]


def evaluations(fields: Mapping[str, Any], key: str) -> list[Evaluation]:
    """The evaluations of a table of fields.

    A field with a list of values (other than `at`) gives one evaluation per value; several such fields give their
    product, the last one fastest. `extractors` is `extractor` with a list.

    Raises:
        InputError: one line naming `key`, the field and what is allowed.
    """
    if "extractors" in fields:
        if "extractor" in fields or not isinstance(fields["extractors"], list):
            raise InputError(f"{key}.extractors: allowed: a list of extractors, and no `extractor` beside it")
        fields = {"extractor" if field == "extractors" else field: value for field, value in fields.items()}
    axes = {field: value if isinstance(value, list) and field != "at" else [value] for field, value in fields.items()}
    for field, values in axes.items():
        if not values:
            raise InputError(f"{key}.{field}: is an empty list")
        if any(other == one for i, one in enumerate(values) for other in values[:i]):
            raise InputError(f"{key}.{field}: a value stands twice in {values}; every value once")
    return [validated(Evaluation, dict(zip(axes, values, strict=True)), key) for values in product(*axes.values())]


def check_evaluation(key: str, evaluation: Evaluation, cell: Cell) -> None:
    """Check that an evaluation fits a cell.

    Args:
        key: what messages call the evaluation.
        evaluation: with its extractor filled in.
        cell: any cell.

    Raises:
        InputError: one line that says what is allowed.
    """
    for problem in _evaluation_problems(evaluation, cell):
        raise InputError(f"{key}.{problem}")
    check_fits(evaluation, cell.data, key)


def _evaluation_problems(evaluation: Evaluation, cell: Cell) -> Iterator[str]:
    """Why an evaluation does not fit a cell, one line each: the field, what is wrong, and what is allowed."""
    guidance = evaluation.guidance
    try:
        cell.diffusion.check_sampling(evaluation.sampler, evaluation.sampling_steps)
    except ValueError as error:
        yield str(error)
    if evaluation.sampler == "ddim-clip" and cell.data.vae is not None:
        yield "sampler: ddim-clip clips to the range of pixels, and latents have none; allowed: ddpm, ddim"
    if guidance != 1 and not cell.data.labels:
        yield f"guidance: {guidance} needs labels, and data.labels is false; allowed: 1.0"
    if guidance != 1 and cell.training.label_dropout == 0:
        yield f"guidance: {guidance} needs a trained null class; set training.label_dropout above 0"
    if evaluation.labels != "uniform" and not cell.data.labels:
        yield f"labels: {evaluation.labels} needs labels, and data.labels is false; allowed: uniform"
    try:
        evaluation.guided_channels(cell.data.shape.channels)
    except ValueError as error:
        yield f"guidance_channels: {error}; allowed: as-published, all"
