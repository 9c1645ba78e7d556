"""The card: what a checkpoint is, how it was made and how it scores."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from funcrobust.checkpoints.fingerprint import WIDTH, Fingerprint, count, is_fingerprint
from funcrobust.core.errors import FuncrobustError, one_line, require_count
from funcrobust.environment import versions


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return versions(("torch", "funcrobust"))


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
        if not isinstance(self.model, str) or not self.model:
            raise FuncrobustError(f"a card's model must be a name, got {self.model!r}")
        require_count("a card's num_classes", self.num_classes, minimum=1)
        shape = self.image_shape
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise FuncrobustError(f"a card's image_shape must be (C, H, W), got {shape!r}")
        for size in shape:
            require_count("a card's image_shape", size, minimum=1)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != shape[0]:
                raise FuncrobustError(
                    f"a card's {name} must have one number for each of {shape[0]} channels, "
                    f"got {value!r}"
                )
            if not all(isinstance(number, int | float) for number in value):
                raise FuncrobustError(f"a card's {name} must be numbers, got {value!r}")
        step = self.restoring_step
        if step is not None and not (isinstance(step, int | float) and 0 < step < float("inf")):
            raise FuncrobustError(f"a card's restoring_step must be a number > 0, got {step!r}")
        for name in ("metrics", "versions"):
            if not isinstance(getattr(self, name), dict):
                raise FuncrobustError(f"a card's {name} must be a dict by name")
        self._check_proof()

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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def card_from(text: str, path: Path) -> Card:
    """Read a card from its JSON; raise `FuncrobustError` that names ``path`` if it is none."""
    known = {f.name for f in fields(Card)}  # a later version's card may hold more
    try:
        values: dict[str, Any] = {k: v for k, v in json.loads(text).items() if k in known}
        values = {k: _tuples(v) for k, v in values.items()}
        return Card(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FuncrobustError(f"{path} has a card that is not one: {one_line(error)}") from error
