"""Certify by randomised smoothing: L2 radii that no attack of any kind breaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Lt

from funcrobust.running.groups import Measured
from funcrobust.running.marks import Count, Weight
from funcrobust.running.option import require_once
from funcrobust.running.places import Picture, say_replaced

if TYPE_CHECKING:
    from torch import Tensor

    from funcrobust.core.certification import Certified
    from funcrobust.report.console import Reporter


@dataclass(frozen=True, kw_only=True)
class Certify(Measured):
    """Certification."""

    sigma: Annotated[float, Gt(0)] = 0.25
    """Standard deviation of the noise, in units of the data, [0, 1]."""
    samples: Count = 1000
    """Noisy copies of each image that bound its class's probability; the paper takes 100000, and
    more certify larger radii."""
    choosing: Count = 100
    """Noisy copies before them that choose the class."""
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.001
    """Probability with which an image's radius may be too large."""
    examples: Count = 100
    """Test images, at random."""
    radii: tuple[Weight, ...] = ()
    """An L2 radius of the table; say it again for another. Left out: multiples of sigma / 2."""
    png: Picture | None = None
    """Draw certified accuracy over the radius there."""

    def check(self) -> None:
        """Refuse a radius that is named twice."""
        super().check()
        require_once("--radii", self.radii)


def run(options: Certify, reporter: Reporter) -> dict[str, Any]:
    """Certify a random part of the test images; show a table, write what is asked for."""
    from funcrobust.core import certification, evaluation
    from funcrobust.report.records import write_json
    from funcrobust.running.dataset import which_test_images
    from funcrobust.running.heading import heading
    from funcrobust.running.machine import pick_device
    from funcrobust.running.measured import load_measured, make_ready

    sigma, n, n0, alpha = options.sigma, options.samples, options.choosing, options.alpha
    most = certification.largest_radius(sigma, n, alpha)
    say_replaced(options.png, reporter)
    say_replaced(options.json_file, reporter)
    device = pick_device(options.device)
    classifier = load_measured(options, device, reporter)
    dataset, predict, (places, x, y) = make_ready(
        classifier, options, options.examples, device, reporter
    )
    params = classifier.model.params
    about = heading(classifier, dataset, len(y), options.seed, options.precision, device)
    with reporter.track("certify", total=len(y) * (n0 + n), unit="copy") as bar:
        found = certification.certify(
            predict, params, x, sigma=sigma, n=n, n0=n0, alpha=alpha, seed=options.seed,
            advance=bar.advance,
        )  # fmt: skip
    noiseless = evaluation.correct(predict, params, x, y)
    smoothed = certification.predicted(found.counts, alpha)
    figures = {
        **about, "sigma": sigma, "samples": n, "choosing": n0, "alpha": alpha,
        "largest_radius": most,
        "network": _accuracy(noiseless), "smoothed": _accuracy(smoothed == y),
        "smoothed_abstains": float((smoothed == certification.ABSTAINS).double().mean()),
        "abstains": float((found.label == certification.ABSTAINS).double().mean()),
        "certified": _accuracies(found, y, _radii(options, most), most),
        "images": {
            "places": places.tolist(), "label": y.tolist(), "certified": found.label.tolist(),
            "radius": found.radius.tolist(), "smoothed": smoothed.tolist(),
        },
    }  # fmt: skip
    _show(figures, which_test_images(len(y), len(dataset.y_test)), reporter)
    if options.png is not None:
        fine = [most * i / 200 for i in range(211)]
        _draw(figures, _accuracies(found, y, fine, most), options.png)
        reporter.say(f"picture  {options.png}")
    if options.json_file is not None:
        write_json(options.json_file, figures)
    return figures


def _radii(options: Certify, most: float) -> list[float]:
    """Return the radii asked for, or 0, σ/2, σ, ... as far as the samples go."""
    half = options.sigma / 2
    return sorted(options.radii) or [half * i for i in range(int(most / half) + 1)]


def _accuracy(which: Tensor) -> dict[str, float]:
    """Return how many of the images it is, with a 95 % interval for all images like them."""
    from funcrobust.core.binomial import share

    value, low, high = share(int(which.sum()), len(which))
    return {"accuracy": value, "low": low, "high": high}


def _accuracies(
    found: Certified, y: Tensor, radii: list[float], most: float
) -> list[dict[str, float]]:
    """Return certified accuracies, each with its interval; above ``most`` it is 0 for certain."""
    none = {"accuracy": 0.0, "low": 0.0, "high": 0.0}
    correct = found.label == y
    return [
        {"radius": r, **(_accuracy(correct & (found.radius >= r)) if r <= most else none)}
        for r in radii
    ]


def _show(figures: dict[str, Any], which: str, reporter: Reporter) -> None:
    """Say what was found of ``which`` images, each accuracy with its interval."""
    about = (
        f"{figures['checkpoint']}: {figures['model']} on {figures['dataset']}, "
        f"{which}, σ = {figures['sigma']:g}, "
        f"{figures['choosing']} + {figures['samples']} copies, α = {figures['alpha']:g}"
    )
    rows = [
        ("the network, without noise", figures["network"]),
        ("the smoothed classifier", figures["smoothed"]),
        *((f"certified, radius {row['radius']:.4g}", row) for row in figures["certified"]),
    ]
    reporter.table(
        about,
        ("", "accuracy", "95 % interval"),
        [
            (what, f"{it['accuracy']:.1%}", f"{it['low']:.1%} to {it['high']:.1%}")
            for what, it in rows
        ],
    )
    most = figures["largest_radius"]
    reporter.say(
        f"the smoothed classifier abstains on {figures['smoothed_abstains']:.1%}, certification on "
        f"{figures['abstains']:.1%}; {figures['samples']} copies certify no radius above {most:.4g}"
    )
    if any(row["radius"] > most for row in figures["certified"]):
        reporter.warn("some radii are above it, whatever the network: take more --samples")


def _draw(figures: dict[str, Any], curve: list[dict[str, float]], path: Path) -> None:
    from funcrobust.report import plots

    copies, most = figures["samples"], figures["largest_radius"]
    points = [(p["radius"], p["accuracy"], p["low"], p["high"]) for p in curve]
    plots.bands(
        {f"{figures['checkpoint']}, σ = {figures['sigma']:g}": points}, path,
        x=f"L2 radius ({copies} copies certify at most {most:.3g})", y="certified accuracy",
        about=f"95 % interval, {figures['examples']} test images",
        title=f"Randomised smoothing on {figures['dataset']}",
    )  # fmt: skip
