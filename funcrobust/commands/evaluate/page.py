"""The page that an evaluation leaves: what stands in it, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcrobust.checkpoints import Card
from funcrobust.checkpoints.locate import CHECKPOINT
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.core.binomial import share
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.evaluation import Run
from funcrobust.core.evaluation.checks import Case
from funcrobust.core.evaluation.curves import COUNTS, Point, over_radius, over_steps, steps_to_fall
from funcrobust.core.randomness import generator
from funcrobust.environment import device_name
from funcrobust.files import free_place
from funcrobust.report import page as report
from funcrobust.report.console import Reporter
from funcrobust.report.html import colophon
from funcrobust.report.plots.images import change_row
from funcrobust.report.records import write_json
from funcrobust.report.run_page import VERDICTS
from funcrobust.report.runs import CONFIG, EVALUATION_PAGE, RunFolder
from funcrobust.running.classifier import Classifier
from funcrobust.running.config import as_command
from funcrobust.running.dataset import which_test_images
from funcrobust.running.option import written_number
from funcrobust.running.places import AUTO
from funcrobust.running.run_report import EVALUATION, own_file, renew
from funcrobust.running.threat import written_threat

MEANING = {
    "invalid": "{robust} means nothing: a check says that what was measured is something else.",
    "suspicious": "Robust accuracy may be far lower than {robust}: the attack may not have seen "
    "what it attacked.",
    "upper bound": "Robust accuracy is at most {robust}, as far as these examples tell: a stronger "
    "attack is known, and was not run or finds more.",
    "holds": "Robust accuracy is {robust}, as far as these examples tell: AutoAttack, or as strong "
    "an ensemble, was run, and no check fails.",
    None: "Robust accuracy is at most {robust}, if the attack saw what it attacked: no check was "
    "tried.",
}
"""What a verdict means; see `core.evaluation.verdict`."""

CURVE_STEPS = 20
"""Steps at each radius."""

SHOWN, LAST = 12, 6
"""Images in a row, and among those lost last; fewer where they are large."""

PIXELS = 150_000
"""In a row, about: an image of 224 × 224 has 50,000."""


class Curves(NamedTuple):
    """How accuracy falls, on a few of the examples."""

    places: Tensor
    """Which: (n,) int64, into those evaluated."""
    fell: Tensor
    """(n,) int64: what `steps_to_fall` gave."""
    radius: list[Point]
    steps: list[Point]

    def figures(self) -> dict[str, Any]:
        """Return them as JSON can hold them."""
        return {
            "examples": len(self.places), "steps_at_each_radius": CURVE_STEPS,
            "radius": [_as_figures("radius", point) for point in self.radius],
            "steps": [_as_figures("steps", point) for point in self.steps],
        }  # fmt: skip


def _as_figures(name: str, point: Point) -> dict[str, Any]:
    accuracy, *interval = share(point.standing, point.examples)
    return {
        name: point.at, "correct": point.standing, "examples": point.examples,
        "accuracy": accuracy, "interval": interval,
    }  # fmt: skip


def measure_curves(case: Case, reporter: Reporter) -> Curves:
    """Measure how accuracy falls, on at most `Case.few` examples at random."""
    draw = generator(case.seed, "curves")
    places = torch.randperm(len(case.y), generator=draw)[: case.few].sort().values
    places = places.to(case.y.device)
    x, y = case.x[places], case.y[places]
    run = Run(case.number(places), case.seed, "curves")
    how: dict[str, Any] = {"ball": case.ball, "step_size": case.step_size}
    with reporter.track("curves", 2, unit="curve") as bar:
        fell = steps_to_fall(case.predict, case.params, x, y, run, steps=max(COUNTS), **how)
        bar.advance(1)
        radius = over_radius(case.predict, case.params, x, y, run, steps=CURVE_STEPS, **how)
        bar.advance(1)
    return Curves(places, fell, radius, over_steps(case.outcome.clean[places], fell))


def leave(
    options: Evaluate, classifier: Classifier, case: Case, figures: dict[str, Any],
    curves: Curves, path: Path, reporter: Reporter,
) -> None:  # fmt: skip
    """Write the page to ``path``, of `where`, and say so.

    A place that nobody named and cannot be written is a warning. ``figures`` are the evaluation's
    own, as its JSON has them.
    """
    said = f"page: {path}" + ", in place of the one before" * path.exists()
    page = compose(options, classifier, case, figures, curves)
    folder = _own_folder(classifier)
    if folder is not None and path != folder / EVALUATION_PAGE:
        folder = None  # the page is elsewhere
    try:
        if folder is not None and options.page == AUTO:
            own_file(RunFolder.open(folder), EVALUATION_PAGE)  # no link to somewhere else
        report.write(page, path)
    except FuncrobustError as error:
        if options.page != AUTO:
            raise
        reporter.warn(f"{error}; or use --page FILE.html, or --no-page")
        said = ""
    if folder is not None:
        _tell(folder, figures, reporter)
    if said:
        reporter.say(said)


def _tell(folder: Path, figures: dict[str, Any], reporter: Reporter) -> None:
    """Leave the figures in a run folder, for the run's own page and the table of all runs."""
    try:
        run = RunFolder.open(folder)
        write_json(own_file(run, EVALUATION), figures)
        renew(run, (CureTrain, PsiTrain))
    except FuncrobustError as error:
        reporter.warn(str(error))


def where(options: Evaluate, classifier: Classifier) -> Path:
    """Return where the page goes: where it was said, or into the run folder, or here.

    In a run's folder it is the run's own, and is renewed; here it replaces nothing.
    """
    if options.page is not None and options.page != AUTO:
        return options.page
    folder = _own_folder(classifier)
    return free_place(EVALUATION_PAGE) if folder is None else folder / EVALUATION_PAGE


def _own_folder(classifier: Classifier) -> Path | None:
    """Return the folder of the run that a classifier is of, if it is what the run left."""
    file = classifier.file
    in_a_run = file.name == CHECKPOINT and (file.parent / CONFIG).is_file()
    return file.parent if in_a_run and classifier.as_saved else None


def compose(
    options: Evaluate, classifier: Classifier, case: Case, figures: dict[str, Any], curves: Curves
) -> report.Page:
    """Gather what the page shows."""
    word = figures["verdict"]
    because = figures["because"] or [f"not tried: {name}" for name in figures["not_tried"]]
    attacks = [(row["attack"], row["accuracy"], row["interval"]) for row in figures["after"]]
    shares = [("no attack", figures["clean"], figures["clean_interval"]), *attacks]
    several = len(attacks) > 1
    in_turn = "; attacks in turn, each row is what is left after it and those above" * several
    again = replace(options, checkpoint=classifier.name, save=None)
    threat = written_threat(figures["constraint"], figures["epsilon"])
    return report.Page(
        title=f"Evaluation of {classifier.label} against {threat}",
        meaning=MEANING[word].format(robust=report.percent(figures["robust"])),
        verdict=word or "no verdict", because=because, mark=VERDICTS[word],
        shares=[report.Share(name, value, *bounds) for name, value, bounds in shares],
        shares_note=f"{_which(figures)}{in_turn}. Whiskers: exact binomial 95 % intervals.",
        facts=_facts(options, classifier, figures),
        checks=[_check_row(check) for check in figures["checks"]],
        curves=_curves(curves, figures["epsilon"]),
        curves_note=(
            f"On {len(curves.places)} of the examples, at random and the same at every point, by "
            f"PGD of one sharpness and one start: weaker than the evaluation, and shown for its "
            "shape. It should fall to nothing as ε grows, and be flat in the last steps. At each "
            f"ε: {CURVE_STEPS} steps in proportion to it; over steps: each of "
            f"{written_number(case.step_size)}."
        ),
        rows=_rows(classifier.card, case, figures["attacks"], curves),
        command=as_command(again, places=True),
        made=colophon("%F %R"),
    )  # fmt: skip


def _which(figures: dict[str, Any]) -> str:
    which = which_test_images(figures["examples"], figures["test_images"])
    return f"{figures['dataset']}: {which}"


def _facts(options: Evaluate, classifier: Classifier, figures: dict[str, Any]) -> dict[str, str]:
    effort = {
        "steps": figures["steps"], "restarts": figures["restarts"],
        "step size": None if options.step_size is None else written_number(options.step_size),
    }  # fmt: skip
    given = [f"{name} {value}" for name, value in effort.items() if value is not None]
    return {
        "classifier": f"{classifier.name} ({figures['model']})",
        "its file's SHA-256": figures["sha256"],
        "threat model": written_threat(figures["constraint"], figures["epsilon"])
        + ", of images in [0, 1]",
        "attacks": ", then ".join(figures["attacks"]) + (f" ({', '.join(given)})" if given else ""),
        "examples": _which(figures)
        + f", by seed {figures['seed']}" * (figures["examples"] < figures["test_images"]),
        "normalisation": figures["normalisation"],
        "mode": f"{figures['mode']}: batch norm with its running statistics, no dropout",
        "numbers": figures["dtype"],
        "seed": str(figures["seed"]),
        "versions": ", ".join(f"{name} {number}" for name, number in figures["versions"].items()),
        "device": device_name(figures["device"]),
        "time under attack": f"{figures['seconds']:.0f} s",
    }


def _check_row(check: dict[str, Any]) -> report.CheckRow:
    states: dict[bool | None, report.State] = {True: "pass", False: "fail", None: "not tried"}
    return report.CheckRow(check["name"], states[check["passed"]], check["figure"])


def _curves(curves: Curves, epsilon: float) -> list[report.Curve]:
    def shares(points: Sequence[Point], name: Any) -> list[tuple[float, report.Share]]:
        return [(p.at, report.Share(name(p.at), *share(p.standing, p.examples))) for p in points]

    found = []
    if curves.radius:
        points = shares(curves.radius, lambda at: f"{at / epsilon:.3g}")
        title = "Accuracy over the radius"
        found.append(report.Curve(title, "radius of the attack, in ε", points, marked=epsilon))
    points = shares(curves.steps, lambda at: f"{at:g}")
    found.append(report.Curve("Accuracy over steps", "steps of the attack", points, even=True))
    return found


# --- images -------------------------------------------------------------------------------------


def _rows(card: Card, case: Case, attacks: Sequence[str], curves: Curves) -> list[report.Row]:
    """Return images that were lost: some at random, and those that were lost last."""
    if case.x.ndim != 4 or case.x.shape[1] not in (1, 3):
        return []
    fell_to = case.outcome.fell_to
    lost = (fell_to > 0).nonzero().squeeze(1)
    if not len(lost):
        return []
    most = max(2, PIXELS // (case.x.shape[2] * case.x.shape[3]))
    hardest = _hardest_first(lost, fell_to, curves)[: min(LAST, most, max(1, len(lost) // 3))]
    others = lost[~torch.isin(lost, hardest)]
    order = torch.randperm(len(others), generator=generator(case.seed, "page"))
    some = others[order.to(others.device)][: min(SHOWN, most)].sort().values
    _, factor = change_row(case.x[lost], case.outcome.images[lost])
    what = f"Clean, attacked, and the difference {factor:g} times about gray. "
    several = len(attacks) > 1
    which_last = (
        "Those that fell to the last attacks, the hardest of them first." if several
        else "Those that took the most steps, or that the one start of the curves did not break."
    )  # fmt: skip

    def triples(rows: Tensor) -> list[report.Triple]:
        return [_triple(card, case, int(i), factor, attacks if several else ()) for i in rows]

    found = [
        report.Row("Images lost", f"{what}{len(some)} of {len(lost)} at random.", triples(some)),
        report.Row("Images lost last", what + which_last, triples(hardest)),
    ]
    return [row for row in found if row.triples]


def _hardest_first(lost: Tensor, fell_to: Tensor, curves: Curves) -> Tensor:
    """Sort by the attack that broke them, then by the steps that the curves' run took."""
    took = torch.full_like(fell_to, -1)
    took[curves.places] = torch.where(curves.fell < 0, max(COUNTS) + 1, curves.fell)
    key = fell_to[lost] * (max(COUNTS) + 3) + took[lost]
    return lost[key.argsort(descending=True, stable=True)]


def _triple(card: Card, case: Case, i: int, factor: float, attacks: Sequence[str]) -> report.Triple:
    clean, attacked = case.x[i].float(), case.outcome.images[i].float()
    return report.Triple(
        clean, attacked, change_row(clean, attacked, factor)[0],
        _class_name(card, int(case.y[i])), _class_name(card, int(case.outcome.predicted[i])),
        attacks[int(case.outcome.fell_to[i]) - 1] if attacks else "",
    )  # fmt: skip


def _class_name(card: Card, number: int) -> str:
    names = card.class_names
    if number < 0:
        return "none (NaN)"
    return str(names[number]) if number < len(names) else f"class {number}"
