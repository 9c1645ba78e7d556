"""The card: what a checkpoint is, how it was made and how it scores."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from funcrobust.checkpoints.fingerprint import WIDTH, Fingerprint, count, is_fingerprint
from funcrobust.core.errors import FuncrobustError, require_count, unknown_name
from funcrobust.environment import versions
from funcrobust.reading import parse_json, structured


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return versions(("torch", "funcrobust"))


CONSTRAINTS = ("linf", "l2", "unconstrained", "fourier")
"""Threat models that a card may name."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint is, how it was made and how it scores.

    ``model`` is a name for `funcrobust.models.build`; ``image_shape`` is (C, H, W); ``mean`` and
    ``std`` have one number a channel, in [0, 1]; ``command`` is the exact command line that made
    it; ``metrics`` are fractions by name, such as ``{"clean": 0.51, "pgd50x10": 0.29}``;
    ``created`` is an ISO date in UTC. ``restoring_step`` a says that the network was trained so
    that x + a·∇z_y restores x (None: that it was not): it draws by such steps. ``constraint`` and
    ``epsilon`` are the threat model it was trained against, and is measured against unless told
    otherwise. ``sha256`` and ``fingerprint`` are what a checkpoint proves itself by: the digest of
    its tensors, and its network's logits at a few fixed images, empty where there are none. `save`
    takes them. They say nothing of their own, so that cards are equal without them.

    Raises `FuncrobustError` for a card that could describe no network.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    class_names: tuple[str, ...] = ()
    constraint: str = "linf"
    epsilon: float = 8 / 255
    restoring_step: float | None = None
    command: str = ""
    seed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    notes: str = ""
    versions: dict[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=_now)
    sha256: str = field(default="", compare=False)
    fingerprint: Fingerprint = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        _require_texts(self, "model", "dataset", "constraint", "command", "notes", "created")
        if not 0 < len(self.model) <= 400:
            raise FuncrobustError(f"a card's model must be a name, got {_short(self.model)}")
        require_count("a card's num_classes", self.num_classes, minimum=1)
        require_count("a card's seed", self.seed)
        if max(self.num_classes, self.seed) >= 2**63:
            raise FuncrobustError("a card's num_classes and seed must be below 2^63")
        shape = self.image_shape
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise FuncrobustError(f"a card's image_shape must be (C, H, W), got {_short(shape)}")
        for size in shape:
            require_count("a card's image_shape", size, minimum=1)
        self._check_normalisation()
        self._check_threat()
        names = self.class_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise FuncrobustError(f"a card's class_names must be texts, got {_short(names)}")
        if len(names) > self.num_classes:
            raise FuncrobustError(
                f"a card's class_names must be at most {self.num_classes}, there are {len(names)}"
            )
        for name in ("metrics", "versions"):
            if not isinstance(getattr(self, name), dict):
                raise FuncrobustError(f"a card's {name} must be a dict by name")
        self._check_proof()

    def _check_normalisation(self) -> None:
        channels = self.image_shape[0]
        for name, low in (("mean", -1e6), ("std", 1e-6)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != channels:
                raise FuncrobustError(
                    f"a card's {name} must have one number for each of {channels} channels, "
                    f"got {_short(value)}"
                )
            if not all(_is_number(number) and low <= number <= 1e6 for number in value):
                raise FuncrobustError(
                    f"a card's {name} must be numbers of {low:g} to 1e6, got {_short(value)}"
                )

    def _check_threat(self) -> None:
        if self.constraint not in CONSTRAINTS:
            raise unknown_name("constraint of a card", self.constraint[:40], CONSTRAINTS)
        if not (_is_number(self.epsilon) and 0 <= self.epsilon < 1e30):
            raise FuncrobustError(
                f"a card's epsilon must be a number >= 0, got {_short(self.epsilon)}"
            )
        step = self.restoring_step
        if step is not None and not (_is_number(step) and 0 < step < 1e30):
            raise FuncrobustError(
                f"a card's restoring_step must be a number > 0, got {_short(step)}"
            )

    def _check_proof(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch("([0-9a-f]{64})?", self.sha256):
            raise FuncrobustError("a card's sha256 must be 64 hexadecimal digits, or empty")
        if self.fingerprint != () and not is_fingerprint(self.fingerprint, self.image_shape):
            raise FuncrobustError(
                f"a card's fingerprint must be {count(self.image_shape)} lists, one for each fixed "
                f"image, of the same number of finite numbers, at most {WIDTH}; or empty"
            )


def renewed(card: Card) -> Card:
    """Return the card with the versions and the date of now: for what is made from another's."""
    return replace(card, versions=_versions(), created=_now())


def _require_texts(card: Card, *names: str) -> None:
    for name in names:
        value = getattr(card, name)
        if not isinstance(value, str):
            raise FuncrobustError(f"a card's {name} must be a text, got {_short(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return repr(value)[:80]


def card_from(text: str | bytes, path: Path) -> Card:
    """Read a card from its JSON; raise `FuncrobustError` that names ``path`` if it is none."""
    what = f"{path} has a card that is not one"
    found = parse_json(text, what)
    if not isinstance(found, dict):
        raise FuncrobustError(f"{what}: it is no object of JSON")
    known = {f.name for f in fields(Card)}  # a later version's card may hold more
    return structured(Card, {k: v for k, v in found.items() if k in known}, what)
