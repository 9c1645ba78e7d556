"""The options of ``evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Le

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.catalogue import functions
from funcrobust.running.groups import Measured, Precision, Radius, require_norm_of
from funcrobust.running.marks import Acts, Choices, Count, Flag, Where
from funcrobust.running.options import only_with, unless
from funcrobust.running.places import AUTO, Output, Page


class Own(NamedTuple):
    """An attack that an evaluation alone has, and what it does unless an option says another."""

    written: str
    """As the field writes it."""
    steps: int
    restarts: int = 1
    """0: it has none."""
    sized: bool = False
    """Whether it heeds a step size."""
    targeted: bool = False
    """Whether it can go after a given class."""


OWN = {
    "sharp-pgd": Own("sharp PGD", 20, restarts=3, sized=True, targeted=True),
    "pgd": Own("PGD", 20, sized=True, targeted=True),
    "apgd-ce": Own("APGD-CE", 100, targeted=True),
    "apgd-dlr": Own("APGD-DLR", 100),
    "apgd-t": Own("APGD-T", 100, restarts=0, targeted=True),
    "square": Own("square", 5000, restarts=0),
}
"""They stop at the first image that fools the network."""

# Of training's attacks these have such a parameter (a test asks the attacks themselves).
WITH_STEPS = (*OWN, "pgd-k", "apgd-k")
WITH_STEP_SIZE = (
    *(name for name, own in OWN.items() if own.sized),
    "rs-fgsm", "n-fgsm", "zerograd", "pgd-k", "apgd-k",
)  # fmt: skip
TARGETED = tuple(name for name, own in OWN.items() if own.targeted)
ONCE = tuple(name for name, own in OWN.items() if not own.restarts)

Restarted = Acts(
    lambda options: options.attack not in ONCE,
    lambda options: f"--attack {options.attack} takes no random starts",
)


def attack_names() -> tuple[str, ...]:
    """Return what ``--attack`` takes: an evaluation's own attacks, and every one of training's."""
    return (*OWN, *functions("core", "Attack"))


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measured):
    """Evaluation."""

    shared: ClassVar[bool] = True

    examples: Count = 500
    """Test images, at random by --seed; as many as there are, or more, for all of them."""
    attack: Annotated[str, Choices(attack_names), unless(autoattack=True)] = "sharp-pgd"
    """sharp-pgd ascends the log-odds at several sharpnesses, which confidence cannot mask; pgd the
    cross-entropy, as is published (--steps 50 --restarts 10); square sees no gradient."""
    autoattack: bool = False
    """The standard ensemble in place of one attack: APGD-CE, APGD-T, FAB-T, Square."""
    steps: Annotated[Count, only_with(attack=WITH_STEPS), unless(autoattack=True)] | None = None
    """Steps; left out: 20, of APGD 100, of Square 5000 queries."""
    restarts: (
        Annotated[Annotated[int, Ge(1), Le(10**6)], unless(autoattack=True), Restarted] | None
    ) = None
    """Random starts, of which the worst counts; left out: 1, of sharp-pgd 3."""
    target: Annotated[str, unless(autoattack=True), only_with(attack=TARGETED)] | None = None
    """Measure how often an attack makes an image the class it chose, in place of any other: a class
    by number or name, random, or least-likely."""
    constraint: Literal["linf", "l2"] | None = None
    """The threat model; left out: the checkpoint's."""
    epsilon: Radius | None = None
    """Its radius; left out: the checkpoint's."""
    step_size: (
        Annotated[float, Gt(0), only_with(attack=WITH_STEP_SIZE), unless(autoattack=True)] | None
    ) = None
    """Left out: radius / 4, of fewer than ten --steps more, or the attack's own."""
    search: Precision | None = None
    """Precision that attacks search in; left out: --precision's. bf16 is faster, and only what
    fools the network in --precision counts."""
    batch_size: Count = 250
    """Images that are attacked at a time: thousands are quicker on a GPU. The figures are the same
    but for rounding."""
    draws: Count | None = None
    """Of a network that is random, noise or dropout left on: attack and judge the mean of so many
    draws, counted from --seed."""
    checks: bool = True
    """Try whether the figure can be believed, and give a verdict."""
    save: Output | None = None
    """Keep what fools the network in FILE.safetensors; an evaluation that was interrupted goes on
    from there when it is asked for again."""
    page: Annotated[Page | None, Flag(off="--no-page"), Where(), unless(target=...)] = AUTO
    """Write a page there; auto is evaluation.html in the run folder, or else here, and none with
    --json -."""

    def check(self) -> None:
        """Refuse a norm, a file that would not be read again, and a search that is none."""
        super().check()
        if not self.autoattack:
            require_norm_of(self.attack, self.constraint)
        if self.save is not None and self.save.suffix != ".safetensors":
            raise FuncrobustError(f"--save must name a .safetensors file, got {self.save}")
        if self.search == self.precision:
            raise FuncrobustError(
                f"--search {self.search} does nothing here: it is what --precision says already"
            )

    @property
    def asked_steps(self) -> int | None:
        """Steps of the attack: the one's own unless others are asked for, None of training's."""
        own = OWN.get(self.attack)
        return self.steps or (own.steps if own else None)

    @property
    def asked_restarts(self) -> int:
        """Random starts, its own unless others are asked for."""
        own = OWN.get(self.attack)
        return self.restarts or (own.restarts if own else 1)

    @property
    def paged(self) -> bool:
        """Whether a page is to be written."""
        asked = self.page is not None and not (self.prints_figures and self.page == AUTO)
        return asked and self.target is None  # a page is about accuracy
