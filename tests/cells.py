"""What tests ask of the spec of a cell."""

from __future__ import annotations

from harness.spec.cell import Cell
from harness.spec.model import DiTSpec


def dit_spec(cell: Cell) -> DiTSpec:
    """The shape of its Diffusion Transformer."""
    assert isinstance(cell.model, DiTSpec)
    return cell.model
