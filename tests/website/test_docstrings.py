"""Docstrings as pages show them."""

from __future__ import annotations

import docstrings
import pytest

KNOWN = frozenset({"psi", "data.load"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("z_y − p_y.", "z<sub>y</sub> − p<sub>y</sub>."),
        ("x_0 … x_T, x_{t+1}", "x<sub>0</sub> … x<sub>T</sub>, x<sub>t+1</sub>"),
        ("log Σ_{j≠y} e^{z_j}", "log Σ<sub>j≠y</sub> e<sup>z<sub>j</sub></sup>"),
        ("softmax(z)_y", "softmax(z)<sub>y</sub>"),
        ("‖x − c‖_∞ ≤ ε", "‖x − c‖<sub>∞</sub> ≤ ε"),
        ("step_size and max_iter", "step_size and max_iter"),
        ("``x_0`` and `z_y`", "``x_0`` and `z_y`"),
        ("    x_{t+1} = x_t", "    x_{t+1} = x_t"),
        ("see `psi`", "see [`psi`][funcrobust.psi]"),
        ("see `fr.psi`", "see [`fr.psi`][funcrobust.psi]"),
        (
            "see `funcrobust.data.load`",
            "see [`funcrobust.data.load`][funcrobust.data.load]",
        ),
        ("``psi`` and `phi`", "``psi`` and `phi`"),
    ],
)
def test_text(text, expected):
    assert docstrings.shown(text, KNOWN) == expected


def test_arguments_are_prose_though_they_are_indented():
    text = (
        "Say.\n\n    x_1 = `psi`\n\n"
        "Args:\n    x: of `psi`, x_0.\n\n        `phi` too.\n\nMore `psi`."
    )
    shown = docstrings.shown(text, KNOWN)
    assert "    x_1 = `psi`\n" in shown
    assert "x: of [`psi`][funcrobust.psi], x<sub>0</sub>." in shown
    assert shown.endswith("More [`psi`][funcrobust.psi].")
    assert docstrings.nowhere(text, KNOWN) == ["phi"]


def test_examples_are_code():
    text = "Say.\n\n>>> x_0 = 1\n>>> x_0\n1\n\nAnd z_y."
    assert docstrings.shown(text, KNOWN) == (
        "Say.\n\n```pycon\n>>> x_0 = 1\n>>> x_0\n1\n```\n\nAnd z<sub>y</sub>."
    )
