"""The threat model that two options name."""

from __future__ import annotations

from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.fourier import fourier
from funcrobust.core.balls.l2 import l2
from funcrobust.core.balls.linf import linf
from funcrobust.core.balls.unconstrained import unconstrained
from funcrobust.core.errors import FuncrobustError
from funcrobust.running.option import written_number


def written_threat(constraint: str, radius: float) -> str:
    """Write a threat model as in linf ε = 8/255."""
    return f"{constraint} ε = {written_number(radius)}"


def pick_ball(constraint: str, radius: float) -> Ball:
    """Build the named threat model."""
    if not 0 <= radius < float("inf"):
        raise FuncrobustError(f"a radius must be a finite number >= 0, got {radius}")
    if constraint == "linf":
        if radius > 1:
            raise FuncrobustError(
                f"--epsilon {radius:g} exceeds the data range [0, 1]: write 8/255 for eight gray "
                "levels"
            )
        return linf(radius)
    if constraint == "l2":
        return l2(radius)
    if constraint == "unconstrained":
        return unconstrained()
    if constraint == "fourier":
        return fourier()
    raise FuncrobustError(
        f"unknown constraint {constraint!r}: use linf, l2, unconstrained or fourier"
    )
