"""U-Nets at the compute of another network: channels whose multiply-adds are within 5 % of a cell's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from harness.model.cost import Cost, count, count_cell
from harness.runs.columns import MATCHED
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.model import ModelSpec, UNetSpec
from sweeps.toml import as_toml

#: Groups of the norms that are tried where no U-Net is given, the usual number first; fewer make finer steps of width.
_GROUPS = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Match:
    """A U-Net and its cost; `off` is how much more multiply-adds it has than the cell, as a share."""

    model: UNetSpec
    cost: Cost
    off: float

    @property
    def row(self) -> dict[str, Any]:
        """Name, parameters and multiply-adds."""
        return _row(self.model, self.cost, self.off)

    @property
    def line(self) -> str:
        """The model as a table of a sweep file."""
        return as_toml(self.model.model_dump(exclude_defaults=True, mode="json"))


def matches(cell: Cell, given: Iterable[UNetSpec]) -> list[Match]:
    """U-Nets at the compute of a cell, on its data and with its objective.

    Args:
        cell: what they are matched to.
        given: U-Nets to widen or narrow; if there are none, the usual one for such inputs.

    Raises:
        InputError: none is within 5 %, or an input does not fit the levels; the message names the nearest one.
    """
    given = list(given)
    tried = [_nearest(model, cell) for model in given]
    for groups in _GROUPS if not given else ():
        usual = UNetSpec.usual(cell.data.shape, groups)
        if groups > 1 and usual.macs_proxy(cell.data.shape) > 2 * count_cell(cell).macs:
            continue  # its narrowest form is far too wide
        tried.append(_nearest(usual, cell))
        if abs(tried[-1].off) <= MATCHED:
            break
    found = {match.model: match for match in tried if abs(match.off) <= MATCHED}
    if not found:
        nearest = min(tried, key=lambda match: abs(match.off))
        raise InputError(
            f"--match-gmacs: no channels within {MATCHED:.0%} of {count_cell(cell).macs / 1e9:.4g} GMACs; the nearest, "
            f"{nearest.line}, are {nearest.off:+.1%}; allowed: a U-Net with fewer norm_groups, blocks or levels"
        )
    return sorted(found.values(), key=lambda match: abs(match.off))


def row_of(cell: Cell) -> dict[str, Any]:
    """What a `Match` says of itself, of the cell itself."""
    return _row(cell.model, count_cell(cell), 0.0)


def _row(model: ModelSpec, cost: Cost, off: float) -> dict[str, Any]:
    return {"network": model.readable_name, "params_m": cost.params / 1e6, "gmacs": cost.macs / 1e9, "off": off}


def _nearest(model: UNetSpec, cell: Cell) -> Match:
    """The U-Net of this design whose multiply-adds are nearest to a cell's."""
    shape, target = cell.data.shape, count_cell(cell).macs
    try:
        model.check_fits(shape, f"input of {cell.data.name}")
    except ValueError as error:
        raise InputError(f"--match-gmacs: {error}") from None

    def of(units: int) -> Match:
        resized = model.resized(units)
        cost = count(resized, shape, cell.diffusion.outputs)
        return Match(resized, cost, cost.macs / target - 1)

    found = [of(model.units)]
    for _ in range(2):  # a trace takes a while, so the rough count says where to look, corrected by the trace before
        last = found[-1]
        wanted = target / last.cost.macs * last.model.macs_proxy(shape)
        found.append(of(_units(model, wanted, shape)))
    return min(found, key=lambda match: abs(match.off))


def _units(model: UNetSpec, macs: float, shape: InputShape) -> int:
    """The units at which its rough count is nearest to `macs`."""
    units = 1
    while model.resized(units).macs_proxy(shape) < macs:
        units += 1
    return min((n for n in (units - 1, units) if n), key=lambda n: abs(model.resized(n).macs_proxy(shape) / macs - 1))
