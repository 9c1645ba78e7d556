"""Two runs beside each other: options, figures, curves, the same test images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.commands.runs.listing import summary
from funcrobust.commands.runs.options import Runs
from funcrobust.core.errors import FuncrobustError, did_you_mean
from funcrobust.core.losses import cross_entropy
from funcrobust.core.perturbations.projected_gradient import pgd
from funcrobust.files import free_place
from funcrobust.models.registry import names_code
from funcrobust.reading import user_path
from funcrobust.report import run_page
from funcrobust.report.console import Reporter
from funcrobust.report.html import colophon
from funcrobust.report.plots import change_row
from funcrobust.report.records import write_json
from funcrobust.report.run_page import Compared, ComparisonPage, Under
from funcrobust.report.runs import RunFolder
from funcrobust.running.classifier import load_all
from funcrobust.running.config import as_command
from funcrobust.running.dataset import first_of_each_class, load_known
from funcrobust.running.groups import Images
from funcrobust.running.option import options_of
from funcrobust.running.places import AUTO, say_replaced
from funcrobust.running.run_report import (
    figures_of,
    options_in,
    panels,
    pictures,
    records_of,
    said,
    said_option,
)
from funcrobust.running.threat import pick_ball, written_threat

KINDS = (CureTrain, PsiTrain)

FILE = "comparison.html"

STEPS, SHOWN = 20, 10
"""Steps of PGD on the images, and how many are shown."""


def compare(options: Runs, reporter: Reporter) -> dict[str, Any]:
    """Show where two runs differ, in tables and on a page; return it."""
    runs = [RunFolder.open(_found(name, options.out)) for name in options.folders]
    _require_code(options, runs)
    path = _page_place(options)
    say_replaced(options.json_file, reporter)
    names = _names([run.path for run in runs])
    differ, figures = differing(runs), figures_of_both(runs)
    written = {name: [_written(name, v) for v in values] for name, values in figures.items()}
    reporter.table("figures", ("", *names), [(name, *values) for name, values in written.items()])
    if differ:
        rows = [(name, *values) for name, values in differ.items()]
        reporter.table("options that differ", ("", *names), rows)
    else:
        reporter.say("no option differs")
    found = {
        "runs": [asdict(summary(run.path)) for run in runs], "options": differ, "figures": figures,
    }  # fmt: skip
    if options.json_file is not None:
        write_json(options.json_file, found)
    if path is not None:
        _leave(path, options, runs, names, differ, written, reporter)
    return found


def _require_code(options: Runs, runs: Sequence[RunFolder]) -> None:
    """Refuse a network's code where both runs are of networks known here."""
    if options.model and not any(map(_is_of_code, runs)):
        raise FuncrobustError("--model does nothing here: neither run is of a network of your own")


def _is_of_code(run: RunFolder) -> bool:
    return names_code(str(run.config.get("model")))


def _found(name: str, out: Path) -> Path:
    """Return the folder that is so called, here or in ``out``."""
    here, there = user_path(name), out / name
    if here.is_dir() or not there.is_dir():
        if not here.is_dir():
            known = [path.name for path in out.iterdir()] if out.is_dir() else []
            raise FuncrobustError(f"no run {name!r}{did_you_mean(name, known)}, here or in {out}")
        return here
    return there


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name each, not the same twice."""
    short = [path.resolve().name for path in paths]
    if short[0] != short[1]:
        return short
    if paths[0].resolve() == paths[1].resolve():
        raise FuncrobustError(f"the same run twice: {paths[0]}")
    return [str(path) for path in paths]


def differing(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Return the options in which they differ, by their flags.

    Of two commands those that both have; places are not among them.
    """
    both = [options_in(run, KINDS) for run in runs]
    if not all(both):
        plain = [{n: json.dumps(v)[:200] for n, v in run.config.items()} for run in runs]
    else:
        plain = [
            {
                option.flag: said_option(getattr(options, name))
                for name, option in options_of(type(options)).items()
                if not option.where
            }
            for options in both
            if options is not None
        ]
    commands = {"command": [str(run.record.get("command"))[:80] for run in runs]}
    names = [name for name in plain[0] if name in plain[1]]
    found = {name: [one[name] for one in plain] for name in names}
    return {name: v for name, v in (commands | found).items() if v[0] != v[1]}


def figures_of_both(runs: Sequence[RunFolder]) -> dict[str, list[float | None]]:
    """Return the figures of both, by name; None where one has it not.

    psi-train's "robust" is what cure-train calls by its attack, PGD of so many steps.
    """
    both = [figures_of(run.result(), records_of(run)[0])[0] for run in runs]
    steps = [run.config.get("evaluate_steps") for run in runs]
    called = [f"pgd{n}" for n in steps]
    if called[0] == called[1] and any(called[0] in figures for figures in both):
        both = [{called[0] if n == "robust" else n: v for n, v in f.items()} for f in both]
    names = dict.fromkeys(name for figures in both for name in figures)
    return {name: [figures.get(name) for figures in both] for name in names}


def _written(name: str, value: float | None) -> str:
    return "–" if value is None else said(name, value)


# --- the page -----------------------------------------------------------------------------------


def _page_place(options: Runs) -> Path | None:
    """Return where the page goes, if there is to be one."""
    if not options.paged:
        return None
    return free_place(FILE) if options.page == AUTO else options.page


def _leave(
    path: Path, options: Runs, runs: Sequence[RunFolder], names: Sequence[str],
    differ: dict[str, list[str]], written: dict[str, list[str]], reporter: Reporter,
) -> None:  # fmt: skip
    compared, note = list[Compared](), "They were left out."
    if options.images:
        try:
            compared, note = compared_images(options, runs, names, reporter)
        except FuncrobustError as error:
            note = f"They cannot be shown: {error}."
            reporter.warn(f"no images: {error}")
    page = ComparisonPage(
        title=f"{names[0]} and {names[1]}", names=names, figures=written, differing=differ,
        panels=panels({n: records_of(run)[0] for n, run in zip(names, runs, strict=True)}),
        compared=compared, images_note=note,
        pictures={n: pictures(run) for n, run in zip(names, runs, strict=True)},
        command=as_command(options, places=True),
        made=colophon(),
    )  # fmt: skip
    before = path.exists()
    run_page.write(page, path)
    reporter.say(f"page: {path}" + ", in place of the one before" * before)


def compared_images(
    options: Runs, runs: Sequence[RunFolder], names: Sequence[str], reporter: Reporter
) -> tuple[list[Compared], str]:
    """Attack the first test image of each class by way of both networks.

    Raises `FuncrobustError` where a network cannot be loaded, or they know other images.
    """
    device = torch.device("cpu")
    images = Images(dataset=options.dataset, data_dir=options.data_dir)
    folders = [str(run.path) for run in runs]
    both = load_all(folders, device, reporter, models=options.model, images=images)
    card, other = (one.card for one in both)
    if (card.dataset, card.image_shape, card.class_names) != (
        other.dataset, other.image_shape, other.class_names
    ):  # fmt: skip
        raise FuncrobustError("the two know other images, or other classes")
    dataset = load_known(images, card, reporter)
    x, y = (rows[:SHOWN] for rows in first_of_each_class(dataset))
    ball = pick_ball(card.constraint, card.epsilon)
    under: list[list[Under]] = [[] for _ in y]
    factor = None
    for name, classifier in zip(names, both, strict=True):
        predict, params = classifier.model.predict, classifier.model.params
        attack = pgd(cross_entropy(predict), ball, step_size=card.epsilon / 4, steps=STEPS)
        with torch.no_grad():
            attacked = attack(params, x, y)
            seen = [predict(params, images).argmax(-1).tolist() for images in (x, attacked)]
        change, factor = change_row(x, attacked, factor)
        for i, (before, after) in enumerate(zip(*seen, strict=True)):
            called = (dataset.class_names[c] for c in (before, after))
            under[i].append(Under(name, attacked[i], change[i], *called))
    note = (
        f"The first test image of each class: clean, under PGD-{STEPS} from itself at "
        f"{written_threat(card.constraint, card.epsilon)} by way of each network (the first "
        f"one's threat model), and the difference {factor or 1:g} times about gray. A picture, not "
        "a measurement: evaluate measures."
    )
    return [Compared(x[i], dataset.class_names[int(y[i])], under[i]) for i in range(len(y))], note
