"""The variants of a study, by name: what each tells psi-train. Without torch: the help needs none.

"before" is no transfer; "published" the document's code: its loss has no gradient, so that the
statistics of batch norm alone move; "control" all that the default is, but without ψ.
"""

from __future__ import annotations

from typing import Any

_DRIFT: dict[str, Any] = {"objective": "drift"}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "before": None,
    "published": None,
    "drift alone": _DRIFT | {"start": "own", "aim": 1.0, "anchor": 0.0},
    "drift, made": _DRIFT,
    "control": {"restore": 0.0},
    "three steps": {"steps": 3, "step_size": 10.24 / 3},
    "noise alone": {"mixed": 0.0},
    "default": {},
}
"""Options that differ from psi-train's; None where psi-train has no part in it."""


def is_trained(name: str) -> bool:
    """Whether it is a variant that psi-train makes: nothing else has a seed or a length."""
    return VARIANTS.get(name) is not None
