"""``study``: does ψ-training make better images? Each claim of docs/psi-study.md, measured again.

Every variant transfers the same robust classifier by `psi_train` with other options. Judges, which
made none of the images, compare what each draws (`drawing`), at the best way and number of steps
that it has on other images (`scores`), with what the classifier before draws at its own best.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from funcrobust import checkpoints, data
from funcrobust.checkpoints.zoo import is_zoo
from funcrobust.commands.psi_train.options import DRIFT, PsiTrain
from funcrobust.commands.psi_train.recipe import psi_train
from funcrobust.commands.study.options import Study
from funcrobust.commands.study.scores import make_bench, require_linf, score
from funcrobust.commands.study.sheet import Rows, known, require_same, save, tables
from funcrobust.commands.study.variants import VARIANTS, is_trained
from funcrobust.core.balls.l2 import l2
from funcrobust.core.errors import FuncrobustError, extra
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import Functional
from funcrobust.core.perturbations.projected_gradient import psi
from funcrobust.core.randomness import generator, key
from funcrobust.report.console import Reporter
from funcrobust.report.runs import CONFIG, RunFolder
from funcrobust.running.classifier import load_classifier, pick_judges
from funcrobust.running.config import from_config
from funcrobust.running.dataset import load_known
from funcrobust.running.machine import (
    pick_device,
    pick_dtype,
    pick_precision,
    warn_if_emulated,
)
from funcrobust.running.option import options_of
from funcrobust.running.processes import processes


def study(options: Study, reporter: Reporter) -> Rows:
    """Transfer, score and compare; leave study.json and plots in ``options.out``."""
    device = pick_device(options.device)
    warn_if_emulated(options.precision, device, reporter)
    options = replace(options, precision=pick_precision(options.precision, device))
    with extra("study", "precision and recall need torch-fidelity"):  # missed now, not at the end
        import torch_fidelity  # noqa: F401
    names = dict.fromkeys(("before", *(options.variants or VARIANTS)))
    found = {
        name: load_classifier(str(_find(name)), device, reporter)
        for name in names
        if name not in VARIANTS
    }
    before = load_classifier(options.checkpoint, device, reporter)
    base, card = before.name, before.card
    for name, (_, other, *_) in found.items():
        if (other.image_shape, other.num_classes) != (card.image_shape, card.num_classes):
            raise FuncrobustError(
                f"{name} knows {other.dataset}, and {base} {card.dataset}: name a network of the "
                "same images with --checkpoint"
            )
    require_linf(options, card)
    dataset = load_known(options, card, reporter).to(device)
    judges = pick_judges(options.judges, base, card, device, reporter.progress_callback())
    if not judges:
        raise FuncrobustError(f"the shipped judge does not know {dataset.name}: use --judge")
    require_same(options, before, dataset, judges)
    bench = make_bench(options, judges, dataset, pick_dtype(options.precision, device), reporter)
    # The network before is the same in every study; a transfer may have been made anew.
    here = processes()
    rows: Rows = {"before": here.same(known(options, before, bench).get("before", []))}
    for name in names:
        if name == "before" and rows["before"]:
            continue
        trained = is_trained(name)
        for seed in range(options.seed, options.seed + (options.repeats if trained else 1)):
            reporter.say(f"{name}, seed {seed}:" if trained else f"{name}:")
            step = None
            if name == "before":
                model = before.model
            elif name == "published":
                model = published(before.model, dataset, options)
            else:
                which = found.get(name)
                if which is None:
                    path = transferred(name, seed, base, dataset.name, options, reporter)
                    which = load_classifier(str(path), device, reporter)
                _, its_card, _, model = which
                step = its_card.restoring_step
            rows.setdefault(name, []).append(score(model, bench, step))
            save(rows, options, before, bench)
    tables(rows, bench)
    return rows


def _find(name: str) -> Path | str:
    """Return the checkpoint called so, or say what there is."""
    try:
        return name if is_zoo(name) else checkpoints.resolve(name)
    except FuncrobustError as error:
        known = ", ".join(map(repr, VARIANTS))
        raise FuncrobustError(f"{name!r} is no variant ({known}), and {error}") from None


def transferred(
    name: str, seed: int, base: str, dataset: str, options: Study, reporter: Reporter
) -> Path:
    """Run psi-train with the variant's options, or take up the run that is there."""
    folder = f"{folder_of(name)}-{seed}"
    path = options.out / folder
    where: dict[str, Any] = {"device": options.device, "data_dir": options.data_dir}
    given = where | {
        "checkpoint": base, "dataset": dataset, "out": options.out, "name": folder,
        "seed": seed, "precision": options.precision, "evaluate_examples": 256, "strips": 0,
    }  # fmt: skip
    if options.updates is not None:
        given["updates"] = options.updates
    wanted = PsiTrain.filled(given | (VARIANTS[name] or {}))
    here = processes()
    begun = here.same(path.exists())
    if begun:
        _require_same(wanted, path)
    if here.same(not begun or RunFolder.open(path).result() is None):
        own = where | {"resume": path, "checkpoint": base, "dataset": dataset}
        resumed = PsiTrain.filled(own) if begun else wanted
        if psi_train(resumed, reporter).status == "interrupted":
            raise KeyboardInterrupt
    return path


def folder_of(name: str) -> str:
    """Return what a variant's run folders begin with."""
    return name.replace(", ", "-").replace(" ", "-")


FILLED_IN = ("epsilon", "step_size")


def _require_same(given: PsiTrain, path: Path) -> None:
    """Refuse to take one experiment's network for another's."""
    stored = from_config(PsiTrain, RunFolder.open(path).config, path / CONFIG)
    different = [
        name
        for name, option in options_of(PsiTrain).items()
        # What the checkpoint decides, unless it is given, the run has filled in.
        if name not in FILLED_IN
        and not option.where
        and getattr(given, name) != getattr(stored, name)
    ]
    if different:
        raise FuncrobustError(
            f"{path} holds a run with another {', '.join(different)}: use another --out, or delete "
            "that folder"
        )


def published(model: Functional, dataset: data.Dataset, options: Study) -> Functional:
    """Do what the document's code does: no gradient reaches θ, the statistics alone move.

    Its settings: untargeted from label 0, 10 L2 steps of 5, radius 200, batches of 50. ψ runs in
    evaluation mode, and what it made goes through the network in training mode.
    """
    updates = options.updates or DRIFT["updates"]
    buffers = model.buffers
    for step in range(updates):
        draw = generator(options.seed, "study/published", step, dataset.y_train.device)
        n = len(dataset.y_train)
        index = torch.randperm(n, generator=draw, device=dataset.y_train.device)[:50]
        x = data.as_float(dataset.x_train[index])
        loss = cross_entropy(model.with_buffers(buffers))
        walk = psi(loss, l2(200.0), step_size=5.0, steps=10)
        with torch.no_grad():
            moved = walk(model.params, x, torch.zeros_like(index))
            _, buffers = model.predict_train(
                model.params, buffers, moved, key=key(options.seed, "study", step)
            )
    return replace(model, buffers=buffers)
