"""The adjoint's memory is flat in its steps: measured in child processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from torch.func import grad
import funcrobust as fr
from funcrobust import models

torch.set_num_threads(2)
mode, steps = sys.argv[1], int(sys.argv[2])
model = fr.functionalize(models.build("preact-tiny")).to("cpu", torch.channels_last)
draw = torch.Generator().manual_seed(0)
x = torch.rand(24, 3, 32, 32, generator=draw).contiguous(memory_format=torch.channels_last)
y = torch.randint(10, (24,), generator=draw)
psi = fr.psi(fr.cross_entropy(model.predict), fr.l2(200.0), step_size=0.5, steps=steps,
             targeted=True, backward=mode)
gradient = grad(fr.mean(fr.drift(psi)))(model.params, x, y)
assert all(torch.isfinite(g).all() for g in gradient.values())
# Not getrusage: its maximum begins at the size of the process that started this one.
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def peak_memory(mode: str, steps: int) -> int:
    """Kilobytes of one ψ-gradient in a process of its own, the library included."""
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode, str(steps)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(child.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_adjoint_memory_is_flat():
    few, many, unrolled = (
        peak_memory("adjoint", 5), peak_memory("adjoint", 40), peak_memory("unroll", 20),
    )  # fmt: skip
    assert many <= 1.15 * few
    # The measurement can tell: half the steps unrolled need visibly more.
    assert unrolled > 1.5 * many
