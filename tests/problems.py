"""Small float64 networks for exact comparisons, and what tests measure them with."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import funcrobust as fr
from funcrobust import cli
from funcrobust.running.options import Options

ROOT = Path(__file__).resolve().parent.parent


class TinyNet(nn.Module):
    """Convolution, batch norm, smooth activation, linear: all that differs between networks."""

    def __init__(self, activation: type[nn.Module] = nn.SiLU, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), activation(),
            nn.Dropout(dropout), nn.Flatten(), nn.Linear(6 * 4 * 4, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@dataclass(frozen=True)
class Problem:
    """A network, a batch inside the data bounds, and the cross-entropy."""

    module: nn.Module
    model: fr.Functional
    x: Tensor
    y: Tensor
    loss: fr.Loss

    @property
    def params(self) -> fr.Params:
        return self.model.params


def make_problem(dtype: torch.dtype = torch.float64, **kwargs: object) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TinyNet(**kwargs).to(dtype)  # type: ignore[arg-type]
        norm = module.net[1]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        x = torch.rand(4, 3, 8, 8, dtype=dtype) * 0.6 + 0.2
        y = torch.randint(0, 5, (4,))
    model = fr.functionalize(module)
    return Problem(module.eval(), model, x, y, fr.cross_entropy(model.predict))


DERIVATIVES: dict[str, fr.Derivative] = {
    "unrolled": fr.unrolled(), "adjoint": fr.adjoint(), "segmented": fr.adjoint(every=0),
    "truncated": fr.truncated(3), "one_step": fr.one_step(), "implicit": fr.implicit(),
}  # fmt: skip
"""Every way of differentiating an iteration, by name."""


def random_direction(params: fr.Params, seed: int = 1) -> fr.Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}


def directional_difference(f, params: fr.Params, direction: fr.Params, step: float = 1e-6) -> float:
    """Central finite difference of a scalar function of parameters."""
    ahead = f({k: p + step * direction[k] for k, p in params.items()})
    behind = f({k: p - step * direction[k] for k, p in params.items()})
    return float((ahead - behind) / (2 * step))


def inner(a: fr.Params, b: fr.Params) -> float:
    return float(sum((a[k] * b[k]).sum() for k in a))


def largest(tensors: Iterable[torch.Tensor]) -> float:
    """The largest absolute value; NaN where there is one, which Python's ``max`` may pass over."""
    return float(torch.stack([t.detach().abs().max().double() for t in tensors]).max())


def largest_difference(a: fr.Params, b: fr.Params) -> float:
    assert a.keys() == b.keys()
    return largest(a[k] - b[k] for k in a)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_cli(*arguments: str, cwd: Path | None = None) -> Done:
    """Run ``python cli.py ...`` in this process, which saves the seconds that torch's import takes.

    In ``cwd``, whose modules are forgotten afterwards.
    """
    out, err, known, code = io.StringIO(), io.StringIO(), set(sys.modules), 0
    with (
        contextlib.chdir(cwd or ROOT),
        mock.patch.object(sys, "argv", ["cli.py", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    for name in set(sys.modules) - known:
        if cwd and str(getattr(sys.modules[name], "__file__", "")).startswith(str(cwd)):
            del sys.modules[name]
    return Done(code, out.getvalue(), err.getvalue())


def parsed(*words: str) -> Options:
    """The options that a command line means."""
    call, bound, _ = cli.program(list(words)).parse_args(words, exit_on_error=False)
    return call(*bound.args, **bound.kwargs)


def run_child(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python cli.py ...`` as a user would: where the process is the point."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=cwd or ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
