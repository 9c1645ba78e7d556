"""``evaluate``: clean accuracy, accuracy under attack with intervals, checks and a verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcrobust import checkpoints
from funcrobust.checkpoints import Card
from funcrobust.checkpoints.loading import card_of
from funcrobust.commands.evaluate import attacking, page, saving
from funcrobust.commands.evaluate.options import Evaluate
from funcrobust.commands.evaluate.subject import Subject, settings_of, subject_of
from funcrobust.core.binomial import Share, share
from funcrobust.core.evaluation import Adversary, Outcome, Run, correct
from funcrobust.core.evaluation.checks import CHECKS, TWICE, Case, Check, run_checks
from funcrobust.core.evaluation.ensemble import attack_the_standing, look
from funcrobust.core.evaluation.verdict import Verdict, verdict
from funcrobust.core.images import as_float
from funcrobust.core.network.functional import Params, Predict
from funcrobust.report.console import Reporter
from funcrobust.report.records import write_json
from funcrobust.running.classifier import USUAL, Classifier, load_classifier
from funcrobust.running.config import as_command
from funcrobust.running.dataset import which_test_images
from funcrobust.running.heading import measured_on
from funcrobust.running.places import AUTO, say_replaced
from funcrobust.running.processes import processes
from funcrobust.running.stops import Stops
from funcrobust.running.threat import written_threat

CHUNK = 500
"""Examples that go through all attacks before the next, or a batch of more: what can be lost is one
attack on them."""

LOOKED = 1000
"""Images that are classified between two looks at the clock: whole batches of `look`'s."""

ENOUGH_DRAWS = 16
"""What a random network is first tried with, as the cost is theirs."""

SAVE_EVERY = 60.0
"""Seconds between two writes of ``--save``."""


def evaluate(options: Evaluate, reporter: Reporter) -> dict[str, Any]:
    """Measure, check, judge and show; return the figures."""
    say_replaced(options.json_file, reporter)
    subject = subject_of(options, reporter)
    classifier, device, targeted = subject.classifier, subject.y.device, options.target is not None
    paged = options.paged and processes().first
    path = page.where(options, classifier) if paged else None
    there = len(subject.dataset.y_test)
    adversaries = attacking.adversaries(options, subject.ball, classifier.card.num_classes, device)
    settings = settings_of(options, subject, list(adversaries))
    began = time.perf_counter()
    outcome = _attack(options, settings, subject, adversaries, reporter)
    seconds = time.perf_counter() - began
    if not processes().first:
        return {}
    case = _case(options, subject, outcome, reporter)
    checks = _checked(case, reporter) if options.checks else []
    not_tried = () if options.autoattack else ("AutoAttack (--autoattack)",)
    if targeted:  # AutoAttack has no one target
        not_tried = ("other attacks toward the target",)
    judged = verdict(checks, not_tried) if options.checks else None
    accuracy = outcome.clean
    if targeted:
        accuracy = correct(subject.predict, subject.params, subject.x, subject.labels)
    found = _aimed(outcome, accuracy) if targeted else _figures(outcome, list(adversaries))
    _show(classifier, settings, outcome, accuracy, checks, judged, subject.dataset, reporter)
    asked = not targeted and (path is not None or options.json_file is not None)
    curves = page.measure_curves(case, reporter) if asked else None
    figures = {
        **settings, **found, "seconds": round(seconds, 3),
        "checks": [check._asdict() for check in checks],
        "verdict": judged.word if judged else None,
        "because": list(judged.because) if judged else [],
        "not_tried": list(not_tried),
        "normalisation": "inside the network; the ball is in units of [0, 1]",
        "mode": "evaluation" + _draws(settings), **measured_on(device),
        "dtype": "bfloat16 by autocast" if subject.dtype else "float32",
        "test_images": there, "curves": curves.figures() if curves else None,
    }  # fmt: skip
    if options.json_file is not None:
        write_json(options.json_file, figures)
    random = any(check.passed is False and check.name == TWICE for check in checks)
    _say_what_is_next(options, there, random, reporter)
    if path is not None and curves:
        page.leave(options, classifier, case, figures, curves, path, reporter)
    return figures


def _say_what_is_next(options: Evaluate, there: int, random: bool, reporter: Reporter) -> None:
    """Name the evaluations that say more than this one did."""
    plain = replace(options, json_file=None, save=None, page=AUTO)
    more = []
    if random:  # nothing else says anything of it
        plain = replace(plain, draws=ENOUGH_DRAWS)
        more.append(plain)
    if not options.autoattack and options.target is None:
        whole = replace(plain, attack=Evaluate.attack, steps=None, restarts=None, step_size=None)
        more.append(replace(whole, autoattack=True))
    if options.examples < there:
        more.append(replace(plain, examples=there, save=Path("all.safetensors")))
    if more:
        reporter.say("Next:")
    for each in more:
        reporter.say(f"  {as_command(each, places=True)}", whole=True)


def _attack(
    options: Evaluate, settings: dict[str, Any], subject: Subject,
    adversaries: dict[str, Adversary], reporter: Reporter,
) -> Outcome:  # fmt: skip
    """Run the attacks in turn on a chunk of examples after another, going on where a file says."""
    targeted = options.target is not None
    predict, params = subject.predict, subject.params
    y, numbers = subject.y, subject.numbers
    outcome = _looked(subject, options.batch_size, targeted, reporter)
    stage = torch.zeros_like(y)
    if options.save is not None and options.save.exists():
        outcome, stage = saving.taken_up(
            options.save, settings, numbers, y, outcome, subject.dataset.num_classes
        )
        reporter.say(f"{options.save}: {int((stage == len(adversaries)).sum())} examples are done")
    # One tensor, written at once: a signal finds an example through an attack, or before it.
    marks = torch.stack([outcome.fell_to, outcome.predicted, stage], 1)
    outcome, stage = Outcome(marks[:, 0], outcome.images, marks[:, 1]), marks[:, 2]

    def keep() -> None:
        if options.save is not None and processes().first:
            saving.keep(options.save, settings, numbers, y, outcome, stage)

    here, saved = processes(), time.monotonic()
    chunk = options.batch_size * -(-CHUNK // options.batch_size) * here.size  # whole batches
    chunks = torch.arange(len(y), device=y.device).split(chunk)
    total = sum(len(here.own(rows)) for rows in chunks) * len(adversaries)
    already = sum(int(stage[here.own(rows)].sum()) for rows in chunks)
    try:
        with (
            _stoppable(options.save),
            reporter.track("attack", total, unit="img", initial=already) as bar,
        ):
            for rows in chunks:
                own = here.own(rows)
                for k, (name, adversary) in enumerate(adversaries.items(), start=1):
                    todo = own[stage[own] < k]
                    if not len(todo):
                        continue

                    def advance(n: int, name: str = name) -> None:
                        bar.advance(n, attack=name)

                    part = Outcome(*(value[todo] for value in outcome))
                    run = Run(
                        numbers[todo], options.seed, f"evaluate/{name}", options.batch_size, advance
                    )
                    part = attack_the_standing(
                        predict, params, y[todo], part, k, adversary, run, targeted=targeted
                    )
                    outcome.images[todo] = part.images
                    through = torch.full_like(todo, k)
                    marks[todo] = torch.stack([part.fell_to, part.predicted, through], 1)
                    if time.monotonic() - saved > SAVE_EVERY:
                        keep()
                        saved = time.monotonic()
                for whole in (outcome.images, marks):
                    whole[rows] = here.together(whole[own], len(rows))
    except KeyboardInterrupt:
        keep()
        if options.save is not None:
            reporter.say(f"interrupted: the same command goes on from {options.save}")
        raise
    keep()
    return outcome


@contextmanager
def _stoppable(save: Path | None) -> Iterator[None]:
    """Let a scheduler's signal end the attacks as Ctrl-C does, where what they found is kept."""
    if save is None:
        yield
    else:
        with Stops() as stops, stops.at_once():
            yield


def _looked(subject: Subject, batch_size: int, targeted: bool, reporter: Reporter) -> Outcome:
    """Return what becomes of each image without an attack: a forward pass of all, with a bar."""
    parts = torch.arange(len(subject.y), device=subject.y.device).split(max(LOOKED, batch_size))
    found = []
    with reporter.track("clean", len(subject.y), unit="img") as bar:
        for rows in parts:
            x, y = subject.x[rows], subject.y[rows]
            seen = look(
                subject.predict, subject.params, x, y, batch_size=batch_size, targeted=targeted
            )
            found.append(seen)
            bar.advance(len(rows))
    return Outcome(*map(torch.cat, zip(*found, strict=True)))


def _case(options: Evaluate, subject: Subject, outcome: Outcome, reporter: Reporter) -> Case:
    """Return what the checks look at."""
    ball, device = subject.ball, subject.y.device
    return Case(
        subject.predict, subject.params, as_float(subject.x), subject.y, ball, outcome,
        subject.numbers, seed=options.seed, step_size=attacking.step_size(options, ball, 20),
        stronger=attacking.stronger(options, ball),
        surrogate=_surrogate(subject.classifier, device, reporter) if options.checks else None,
        targeted=options.target is not None,
    )  # fmt: skip


def _surrogate(
    classifier: Classifier, device: torch.device, reporter: Reporter
) -> tuple[Predict, Params] | None:
    """Return another shipped network that knows the same images, a robust one if there is."""
    card = classifier.card
    own = classifier.file
    for name in sorted(checkpoints.shipped(), key=lambda name: (name != USUAL, name)):
        its = None if checkpoints.resolve(name) == own else card_of(name)
        if its is not None and _known(its) == _known(card):
            other = load_classifier(name, device, reporter).model
            return other.predict, other.params
    return None


def _known(card: Card) -> tuple[Any, ...]:
    """Return what tells the images that a network knows."""
    return card.dataset, card.image_shape, card.num_classes


def _checked(case: Case, reporter: Reporter) -> list[Check]:
    with reporter.track("checks", len(CHECKS), unit="check") as bar:
        return run_checks(case, advance=bar.advance)


def _figures(outcome: Outcome, names: list[str]) -> dict[str, Any]:
    """Clean and worst-case accuracy, and what is left after each attack, with intervals."""
    left = [(name, _share(outcome.after(k))) for k, name in enumerate(names, start=1)]
    return {
        **_named("clean", outcome.clean), **_named("robust", outcome.robust),
        "after": [
            {"attack": name, "accuracy": value, "interval": interval}
            for name, (value, *interval) in left
        ],
    }  # fmt: skip


def _aimed(outcome: Outcome, accuracy: Tensor) -> dict[str, Any]:
    """Who is the target without an attack and with one, and clean accuracy on the same images."""
    return {
        **_named("clean", accuracy), **_named("already", ~outcome.clean),
        **_named("success", ~outcome.robust),
    }  # fmt: skip


def _named(name: str, which: Tensor) -> dict[str, Any]:
    value, *interval = _share(which)
    return {name: value, f"{name}_interval": interval}


def _share(which: Tensor) -> Share:
    return share(int(which.sum()), len(which))


def _show(
    classifier: Classifier, settings: dict[str, Any], outcome: Outcome, accuracy: Tensor,
    checks: list[Check], judged: Verdict | None, dataset: Any, reporter: Reporter,
) -> None:  # fmt: skip
    target = settings["target"]
    attacks = list(enumerate(settings["attacks"], start=1))
    if target is None:
        rows = [("clean", outcome.clean), *((a, outcome.after(k)) for k, a in attacks)]
    else:
        rows = [("accuracy, clean", accuracy), ("the target, clean", ~outcome.clean)]
        rows += [(f"the target, by {a}", ~outcome.after(k)) for k, a in attacks]
    shares = [(name, _share(which)) for name, which in rows]
    which = which_test_images(len(outcome.fell_to), len(dataset.y_test))
    reporter.table(
        f"{classifier.label}: {settings['model']} on {dataset.name}, {which}, "
        + written_threat(settings["constraint"], settings["epsilon"])
        + ("" if target is None else f", target {target}")
        + _draws(settings),
        ("", "accuracy" if target is None else "share", "95 % interval"),
        [(name, f"{s.value:.1%}", f"{s.low:.1%} – {s.high:.1%}") for name, s in shares],
    )
    if judged is None:
        return
    said = {False: "FAIL", None: "not tried"}
    others = [(c.name, said[c.passed], c.figure) for c in checks if c.passed is not True]
    passed = [f"{c.name} ({c.figure})" for c in checks if c.passed]
    if others:
        reporter.table("checks", ("", "", "found"), others)
    if passed:
        what = "check" if len(passed) == 1 else "checks"
        reporter.say(f"{len(passed)} {what} passed: {'; '.join(passed)}")
    word = str(judged.word)
    if target is not None and word == "upper bound":
        word += " of who withstands, the success rate is a lower bound"
    reporter.say(f"verdict: {word}" + "".join(f"; {why}" for why in judged.because))


def _draws(settings: dict[str, Any]) -> str:
    return f", mean of {settings['draws']} draws" if settings["draws"] else ""
