"""The attacks that ``minimum-norm`` runs, by name. Without torch, for the command line's help."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """An attack that seeks the smallest perturbation in a norm."""

    norm: str
    """l0, l1, l2 or linf."""
    steps: int
    """Unless given."""
    foolbox: str | None
    """Its class there; None: it is ours."""


ATTACKS: dict[str, Known] = {
    "fmn-linf": Known("linf", 100, "LInfFMNAttack"),
    "fmn-l2": Known("l2", 100, "L2FMNAttack"),
    "fmn-l1": Known("l1", 100, "L1FMNAttack"),
    "fmn-l0": Known("l0", 100, "L0FMNAttack"),
    "ddn": Known("l2", 100, "DDNAttack"),
    "deepfool-l2": Known("l2", 50, "L2DeepFoolAttack"),
    "deepfool-linf": Known("linf", 50, "LinfDeepFoolAttack"),
    "sigma-zero": Known("l0", 300, None),
}

FOR_CONSTRAINT = {"linf": "fmn-linf", "l2": "ddn"}
"""What is run unless named, by what the checkpoint was trained against."""

CANDIDATES = 10
"""Classes that DeepFool goes after, the image's own among them."""


def passes(name: str, steps: int, classes: int) -> int:
    """Return how often at most an attack goes through the network and back for each image."""
    each = min(CANDIDATES, classes) - 1 if name.startswith("deepfool") else 1
    return steps * each
