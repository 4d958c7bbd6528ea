"""The noise kernel of a GPU makes the numbers that numpy makes; here in Triton's interpreter, on a GPU in earnest."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from harness.data.draws import Normals
from harness.data.noise import noise_rows

#: (first row, rows, row's shape): whole blocks, none, more than one program, far out.
STRETCHES = [(0, 16, (4, 4)), (1, 1, (3, 5)), (7, 90, (5, 7)), (10**7, 2, (4, 32, 32))]

_INTERPRETED = f"""
import numpy as np, torch
from harness.data import noise
from harness.data.draws import Normals
for first, rows, shape in {STRETCHES}:
    normals, part = Normals("noise", 3, first), slice(first, first + rows)
    out = torch.empty(rows, *shape)
    noise.fill(noise.kernel_of_gpu(), normals, part, out)
    np.testing.assert_allclose(out.numpy(), normals.rows(part, shape), rtol=1e-5, atol=1e-6)
print("compared")
"""


def test_the_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when the kernel's file is imported
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "compared\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("first", "rows", "shape"), STRETCHES)
def test_the_kernel_on_a_gpu(first: int, rows: int, shape: tuple[int, ...]) -> None:
    normals, part = Normals("noise", 3, first), slice(first, first + rows)
    made = noise_rows(normals, part, shape, "cuda").cpu().numpy()
    np.testing.assert_allclose(made, normals.rows(part, shape), rtol=1e-5, atol=1e-5)
