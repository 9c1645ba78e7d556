"""The classifiers that commands start from and leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from funcrobust import checkpoints
from funcrobust.checkpoints import Card, save
from funcrobust.checkpoints.loading import card_of
from funcrobust.checkpoints.locate import CHECKPOINT
from funcrobust.checkpoints.zoo import is_zoo, locate
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Functional, Params, functionalize
from funcrobust.data.progress import Progress, silent
from funcrobust.files import sha256_of
from funcrobust.judging import Judge, as_judge
from funcrobust.models.flip_averaged import FLIP
from funcrobust.models.registry import is_factory
from funcrobust.report.console import Reporter
from funcrobust.report.records import shortest
from funcrobust.report.runs import RunFolder
from funcrobust.running.groups import Images
from funcrobust.running.judge_names import read_judge_name
from funcrobust.running.machine import to_device
from funcrobust.running.trusted import require_said, shared_out

USUAL = "cifar10-linf-small"
"""The shipped classifier to measure, to transfer and to draw with."""

JUDGE = "cifar10-standard-small"
"""The shipped standard classifier, which made none of the images it judges."""


def usual_checkpoint() -> str:
    """Return the usual shipped classifier's name, or another's if it is not there."""
    shipped = checkpoints.shipped()
    if not shipped:
        raise FuncrobustError(
            "no classifier is shipped here: train one with cure-train, and name its run folder"
        )
    return USUAL if USUAL in shipped else next(iter(shipped))


class Classifier(NamedTuple):
    """A checkpoint to work with: what it is called, its card, its network on a device."""

    name: str
    card: Card
    module: nn.Module
    """On the CPU."""
    model: Functional

    @property
    def file(self) -> Path:
        """What it was read from."""
        if checkpoints.is_zoo(self.name):
            return locate(self.name, silent)[1]
        return checkpoints.resolve(self.name)

    @property
    def sha256(self) -> str:
        """Of its file: a name may stand for another network tomorrow."""
        return sha256_of(self.file)

    @property
    def as_saved(self) -> bool:
        """Whether it is the network that its file holds, and not that one looking into a mirror."""
        if is_zoo(self.name) or not self.card.model.endswith(FLIP):
            return True
        card = card_of(self.name)
        return card is None or card.model == self.card.model

    @property
    def label(self) -> str:
        """What to call it in a picture: a run folder's or file's own name."""
        if is_zoo(self.name):
            return self.card.model.rpartition("/")[2]
        path = Path(self.name)
        if path.name in (CHECKPOINT, ""):
            path = path.parent
        name = _without_suffix(path.name) or self.card.model
        return name if self.as_saved else f"{name}{FLIP}"


def contents(name: str) -> str:
    """Return the SHA-256 of a checkpoint's tensors, whatever its card says of them by now.

    Of a file without a card it is that of the file.
    """
    card = None if is_zoo(name) else card_of(name)
    if card is not None and card.sha256:
        return card.sha256
    file = locate(name, silent)[1] if is_zoo(name) else checkpoints.resolve(name)
    return sha256_of(file)


def _without_suffix(name: str) -> str:
    """Leave out what kind of file it is: not the end of a folder's name, eps0.5."""
    for suffix in (".tar", ".safetensors", ".pt", ".pth", ".ckpt", ".pkl"):
        name = name.removesuffix(suffix)
    return name


def labels(classifiers: Sequence[Classifier]) -> list[str]:
    """Return a label each, none twice: the whole names where the short ones would not do."""
    short = [classifier.label for classifier in classifiers]
    names = [classifier.name for classifier in classifiers]
    if len(set(short)) == len(short):
        return short
    if len(set(names)) < len(names):
        raise FuncrobustError(f"the same checkpoint twice: {', '.join(names)}")
    return names


def load_classifier(
    name: str | None, device: torch.device, reporter: Reporter, *, model: str | None = None,
    images: Images | None = None,
) -> Classifier:  # fmt: skip
    """Load a checkpoint, or the shipped one if none is named; see `checkpoints.load`.

    ``images`` are those that it is loaded for, if any: where they must be said as its code must,
    one refusal asks for both.
    """
    name = name or usual_checkpoint()
    say_if_state(name, reporter)
    try:
        module, card = checkpoints.load(name, model=model, progress=reporter.progress_callback())
    except FuncrobustError:
        if images is not None:
            require_said([name], [model] if model else [], images)
        raise
    if card.dataset == "unknown" and not is_zoo(name):
        reporter.say(f"{name}: {card.notes}; {_prepared(card)}")
    return Classifier(name, card, module, to_device(functionalize(module), device))


def _prepared(card: Card) -> str:
    """Say what comes before a network of somebody else's file, which nobody may have asked for."""
    if is_factory(card.model):
        return (
            "images in [0, 1] go to the network as they are: if it was trained on normalised ones, "
            "let its forward normalise them first"
        )
    mean, std = (", ".join(f"{v:.3g}" for v in numbers) for numbers in (card.mean, card.std))
    return f"before the network, mean {mean} and deviation {std}"


def say_if_state(name: str, reporter: Reporter) -> None:
    """Say that there is no checkpoint yet, where a run's state is read in its place."""
    if not is_zoo(name) and (step := checkpoints.step_of(name)) is not None:
        reporter.say(f"{name}: from its state at step {step}, the run has not ended")


def load_all(
    names: Sequence[str], device: torch.device, reporter: Reporter, *, models: Sequence[str],
    images: Images,
) -> list[Classifier]:  # fmt: skip
    """Load several checkpoints, or the shipped one if none is named.

    Each that needs one of ``models`` takes its own (`shared_out`). ``images`` are those that they
    are loaded for: one refusal asks for all that was not said.
    """
    every = tuple(names) or (usual_checkpoint(),)
    own = shared_out(models, every)
    try:
        return [
            load_classifier(name, device, reporter, model=model)
            for name, model in zip(every, own, strict=True)
        ]
    except FuncrobustError:
        require_said(every, models, images)
        raise


def save_checkpoint(
    run: RunFolder, model: Functional, params: Params, buffers: Buffers, card: Card
) -> None:
    """Write parameters and buffers of ``model``, with their card, into the run folder.

    The card's fingerprint is of ``model`` itself, so that loading proves that the network built
    again from the card is the one trained.
    """
    card = replace(card, metrics=shortest(card.metrics))
    network = model.module(params, buffers)
    save(run.file(CHECKPOINT), {**params, **buffers}, card, network=network)


def pick_judge(
    name: str | None, drawer: str, card: Card, device: torch.device, progress: Progress = silent
) -> Judge | None:
    """Load a judge of the images that ``card`` describes, which the classifier ``drawer`` makes.

    ``name`` is a checkpoint or ``robustbench:NAME`` (an independent classifier), ``inception``,
    ``inception:FILE``, ``timm:NAME``, ``timm:NAME=FILE``, or ``none``; None is the shipped
    classifier, where it knows the same images.

    Raises `FuncrobustError` for a judge that is not to be had, or knows other images.
    """
    if name == "none" or (name is None and JUDGE not in checkpoints.shipped()):
        return None
    kind, network, file = read_judge_name(name or JUDGE)
    if kind == "checkpoint":
        return _pick_classifier(name, drawer, card, device, progress)
    from funcrobust.running import extractors

    if card.image_shape[0] not in extractors.CHANNELS:
        raise FuncrobustError(f"the judge {name} takes images of 1 or 3 channels, unlike {drawer}")
    judge = (
        extractors.inception(file)
        if kind == "inception"
        else extractors.timm_features(network, file)
    )
    return judge.to(device)


def pick_judges(
    names: tuple[str, ...], drawer: str, card: Card, device: torch.device,
    progress: Progress = silent,
) -> dict[str, Judge]:  # fmt: skip
    """Load several judges, by the names that `pick_judge` takes; no name is as None there.

    Empty where that gives none.
    """
    if not names:
        shipped = pick_judge(None, drawer, card, device)
        return {} if shipped is None else {JUDGE: shipped}
    found = {
        name: pick_judge(name, drawer, card, device, progress) for name in dict.fromkeys(names)
    }
    return {name: judge for name, judge in found.items() if judge is not None}


def _pick_classifier(
    name: str | None, drawer: str, card: Card, device: torch.device, progress: Progress
) -> Judge | None:
    try:
        found = name if name and is_zoo(name) else checkpoints.resolve(name or JUDGE)
    except FuncrobustError as error:
        raise FuncrobustError(
            f"{error}; or a judge by name: inception, timm:NAME, robustbench:NAME"
        ) from error
    judge, its_card = checkpoints.load(found, progress=progress)
    same = (its_card.image_shape, its_card.num_classes) == (card.image_shape, card.num_classes)
    if name is None and not (same and its_card.dataset == card.dataset != "unknown"):
        return None
    if not same:
        raise FuncrobustError(f"the judge {name} knows other images or classes than {drawer}")
    return as_judge(judge).to(device)
