"""What must be the same for two runs to agree bit for bit."""

from __future__ import annotations

from typing import Any

import torch


def numeric_conditions(threads: int, sampling_batch: int, device: str) -> dict[str, Any]:
    """What must be the same for two runs to agree bit for bit."""
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "device": device,
        "hardware": name,
        "threads": threads,
        "sampling_batch": sampling_batch,
    }
