"""adaLN-Zero's gates without its zero initialisation. Not in the paper, where adaLN-Zero adds both to adaLN."""

from __future__ import annotations

from typing import ClassVar

from harness.model.blocks.adaln_zero import AdaLNZeroBlock


class AdaLNGateBlock(AdaLNZeroBlock):
    """adaLN-Zero's block, but its modulation is initialised like any other Linear."""

    starts_at_zero: ClassVar[tuple[str, ...]] = ()
