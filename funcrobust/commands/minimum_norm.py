"""Find the smallest perturbations that fool a network: robust accuracy at every radius."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.groups import Measured, Radius
from funcrobust.running.marks import Choices, Count, Flag
from funcrobust.running.minimum_norm_names import ATTACKS, FOR_CONSTRAINT, passes
from funcrobust.running.option import require_once
from funcrobust.running.places import Picture, say_replaced

if TYPE_CHECKING:
    from torch import Tensor

    from funcrobust.core.evaluation.minimum_norm import Share
    from funcrobust.report.console import Reporter


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Measured):
    """Smallest perturbations."""

    attacks: Annotated[tuple[Annotated[str, Choices(ATTACKS)], ...], Flag("--attack")] = ()
    """An attack that seeks the smallest perturbation, in the norm of its name (ddn in L2,
    sigma-zero in L0); say it again for another. Left out: fmn-linf or ddn, by the checkpoint's
    threat model."""
    examples: Count = 100
    """Test images, at random by --seed."""
    steps: Count | None = None
    """Steps of each attack; left out: 100, of DeepFool 50, of sigma-zero 300."""
    epsilon: Radius | None = None
    """The radius that the table and the picture mark; left out: the checkpoint's, in its norm."""
    png: Picture | None = None
    """Draw robust accuracy over the radius there; of attacks in one norm."""

    def check(self) -> None:
        """Refuse an attack said twice, and one radius or one picture for several norms."""
        super().check()
        require_once("--attack", self.attacks)
        norms = sorted({ATTACKS[name].norm for name in self.attacks})
        for flag, given in (("--png", self.png), ("--epsilon", self.epsilon)):
            if len(norms) > 1 and given is not None:
                raise FuncrobustError(
                    f"{flag} is for one norm, and these attacks have {' and '.join(norms)}: "
                    "run them one norm at a time"
                )


def run(options: MinimumNorm, reporter: Reporter) -> dict[str, Any]:
    """Attack a random part of the test images; show a table, write what is asked for."""
    from funcrobust.core import evaluation
    from funcrobust.core.evaluation.minimum_norm import smallest
    from funcrobust.core.images import as_float
    from funcrobust.report.records import write_json
    from funcrobust.running.dataset import which_test_images
    from funcrobust.running.heading import heading
    from funcrobust.running.machine import pick_device
    from funcrobust.running.measured import load_measured, make_ready
    from funcrobust.running.minimum_norm_attacks import minimum_norm_adversary

    say_replaced(options.png, reporter)
    say_replaced(options.json_file, reporter)
    device = pick_device(options.device)
    classifier = load_measured(options, device, reporter)
    card, model = classifier.card, classifier.model
    names = options.attacks or (_usual(card.constraint),)
    adversaries = {name: minimum_norm_adversary(name, steps=options.steps) for name in names}
    dataset, predict, (places, x, y) = make_ready(
        classifier, options, options.examples, device, reporter
    )
    about = heading(classifier, dataset, len(y), options.seed, options.precision, device)
    steps = {name: options.steps or ATTACKS[name].steps for name in names}
    most = sum(passes(name, steps[name], card.num_classes) for name in names)
    reporter.say(f"at most {most} passes forward and back for each of {len(y)} images")
    norms = {}
    with reporter.track("attack", len(y) * len(names), unit="img") as bar:
        for name, adversary in adversaries.items():

            def advance(n: int, name: str = name) -> None:
                bar.advance(n, attack=name)

            outcome = evaluation.attack_all(
                predict, model.params, x, y, {name: adversary}, numbers=places, seed=options.seed,
                advance=advance,
            )  # fmt: skip
            norms[name] = smallest(outcome, as_float(x), ATTACKS[name].norm)
    radius = {ATTACKS[name].norm: options.epsilon for name in names}
    if options.epsilon is None and card.constraint in radius:
        radius[card.constraint] = card.epsilon
    figures = {
        **about, "epsilon": radius,
        "attacks": [
            {"attack": name, "steps": steps[name], **_of(name, norms, radius)} for name in names
        ],
        "smallest": [_of(norm, {norm: all_}, radius) for norm, all_ in _together(norms).items()],
        "images": {
            "places": places.tolist(), "label": y.tolist(),
            **{name: _plain(values) for name, values in norms.items()},
        },
    }  # fmt: skip
    _show(figures, which_test_images(len(y), len(dataset.y_test)), reporter)
    if options.png is not None:
        _draw(figures, norms, options.png)
        reporter.say(f"picture  {options.png}")
    if options.json_file is not None:
        write_json(options.json_file, figures)
    return figures


def _usual(constraint: str) -> str:
    """Return the attack for what a checkpoint was trained against."""
    if constraint not in FOR_CONSTRAINT:
        raise FuncrobustError(
            f"this checkpoint's threat model is {constraint}, for which no attack is the usual "
            f"one: name one with --attack ({', '.join(ATTACKS)})"
        )
    return FOR_CONSTRAINT[constraint]


def _together(norms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each image's smallest norm over all attacks, for every norm with several attacks."""
    import torch

    groups: dict[str, list[Tensor]] = {}
    for name, values in norms.items():
        groups.setdefault(ATTACKS[name].norm, []).append(values)
    return {norm: torch.stack(all_).amin(0) for norm, all_ in groups.items() if len(all_) > 1}


def _of(name: str, norms: dict[str, Tensor], epsilon: dict[str, float | None]) -> dict[str, Any]:
    """Return what the table says of an attack, or of a norm."""
    from funcrobust.core.evaluation.minimum_norm import accuracy_at

    values = norms[name]
    norm = ATTACKS[name].norm if name in ATTACKS else name
    radius = epsilon[norm]
    right = values[values > 0]
    radii = [] if radius is None else [radius / 2, radius, 2 * radius]
    return {
        "norm": norm, "clean": accuracy_at(values, 0.0)._asdict(), "right": len(right),
        "found": int(right.isfinite().sum()), "median": _plain(right.median().reshape(1))[0]
        if len(right) else None,
        "at": [accuracy_at(values, r)._asdict() for r in radii],
    }  # fmt: skip


def _plain(values: Tensor) -> list[float | None]:
    """Return numbers as JSON has them: null where nothing was found."""
    return [v if v < float("inf") else None for v in values.tolist()]


def _show(figures: dict[str, Any], which: str, reporter: Reporter) -> None:
    """Say what was found of ``which`` images, in each norm a table."""
    about = f"{figures['checkpoint']}: {figures['model']} on {figures['dataset']}, {which}"
    rows = [(f"{it['attack']}, {it['steps']} steps", it) for it in figures["attacks"]]
    rows += [("the smaller of them", it) for it in figures["smallest"]]
    for norm, radius in figures["epsilon"].items():
        here = [(title, it) for title, it in rows if it["norm"] == norm]
        radii = [f"at {at['radius']:.4g}" for at in here[0][1]["at"]]
        reporter.table(
            f"{about}, {norm}" + ("" if radius is None else f", ε = {radius:.4g}"),
            ("robust accuracy [95 %]", "found", "median norm", "at 0", *radii),
            [
                (title, f"{it['found']} of {it['right']}", _median(it["median"]),
                 *(_percent(at) for at in (it["clean"], *it["at"])))
                for title, it in here
            ],
        )  # fmt: skip
    missed = [
        f"{it['attack']} {n}" for it in figures["attacks"] if (n := it["right"] - it["found"])
    ]
    if missed:
        reporter.say(
            f"not fooled, and counted as robust at every radius: images of {', of '.join(missed)}"
        )
    reporter.say(
        "medians are of the images classified right; accuracies are upper bounds: a smaller "
        "perturbation may be there"
    )


def _median(median: float | None) -> str:
    return "none" if median is None else f"{median:.4g}"


def _percent(at: dict[str, float]) -> str:
    return f"{at['accuracy']:.1%} [{100 * at['low']:.1f}, {100 * at['high']:.1f}]"


def _draw(figures: dict[str, Any], norms: dict[str, Tensor], path: Path) -> None:
    from funcrobust.core.evaluation.minimum_norm import curve
    from funcrobust.report import plots

    (norm, radius) = next(iter(figures["epsilon"].items()))
    largest = max((v for all_ in norms.values() for v in _plain(all_) if v), default=0.0)
    series: dict[str, list[Share]] = {
        name: curve(values, to=1.05 * largest) for name, values in norms.items()
    }
    plots.bands(
        series, path, x=f"{norm} radius", y="robust accuracy",
        about=f"95 % interval, {figures['examples']} test images",
        title=f"Smallest perturbations found: {figures['checkpoint']} on {figures['dataset']}",
        mark=None if radius is None else (radius, f"ε = {radius:.4g}"),
    )  # fmt: skip
