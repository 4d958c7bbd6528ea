"""adaLN-Zero's gates without its start at zero; not in the paper, whose step from adaLN to adaLN-Zero adds both."""

from __future__ import annotations

from typing import ClassVar

from harness.model.blocks.adaln_zero import AdaLNZeroBlock


class AdaLNGateBlock(AdaLNZeroBlock):
    """adaLN-Zero's block, whose modulation starts like any other Linear."""

    starts_at_zero: ClassVar[tuple[str, ...]] = ()
