"""Measure accuracy under the common corruptions of CIFAR-10-C, computed or as published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from annotated_types import Ge, Le

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.groups import Measured
from funcrobust.running.marks import Choices, Flag, Lies, Where
from funcrobust.running.option import require_once
from funcrobust.running.places import Picture, require_there, say_replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from funcrobust.data import Dataset
    from funcrobust.report.console import Reporter

NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
"""Those of `data.corruptions`, said again: the help does without torch."""

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class Corruptions(Measured):
    """Corruptions."""

    data_dir: Annotated[Path | None, Where(), Lies(require_there)] = None
    """A local folder with CIFAR-10-C's own arrays, used in place of images computed here: only
    their figures are the literature's. Or one with the dataset."""
    corruptions: Annotated[tuple[Annotated[str, Choices(NAMES)], ...], Flag("--corruption")] = ()
    """One of CIFAR-10-C's; again and again for several; left out: all 15."""
    severities: Annotated[tuple[Annotated[int, Ge(1), Le(5)], ...], Flag("--severity")] = ()
    """1 to 5; again and again for several; left out: all."""
    examples: Annotated[int, Ge(2)] = 500
    """Test images, at random; where there are fewer: all."""
    png: Picture | None = None
    """Write a picture there: one image under each corruption at each severity."""

    def check(self) -> None:
        """Refuse what is named twice."""
        super().check()
        require_once("--corruption", self.corruptions)
        require_once("--severity", self.severities)


class Found(NamedTuple):
    """Which images were classified right, and how the first of them looks."""

    clean: Tensor
    """(N,), bool."""
    corrupted: dict[str, dict[int, Tensor]]
    """By corruption and severity: (N,), bool."""
    looks: dict[int, Tensor]
    """By severity: the first image, clean and under each corruption, (1 + corruptions, C, H, W)."""


def run(options: Corruptions, reporter: Reporter) -> dict[str, Any]:
    """Measure; show a table, write JSON and a picture if asked; return the figures.

    The mean corruption accuracy is the plain mean over the corruptions and severities asked for:
    one minus the mean corruption error of Hendrycks & Dietterich (2019, arXiv:1903.12261) before it
    is divided by a baseline's. Its 95 % interval is by bootstrap over the images, which all
    corruptions share; that of the clean accuracy is Clopper and Pearson's.
    """
    from funcrobust.core import evaluation
    from funcrobust.data.cifar_c import published_folder, require_published
    from funcrobust.running.dataset import chosen_test_images, load_known, require_taken
    from funcrobust.running.heading import heading
    from funcrobust.running.machine import pick_device, pick_dtype
    from funcrobust.running.measured import load_measured
    from funcrobust.running.measuring import evaluating

    say_replaced(options.png, reporter)
    say_replaced(options.json_file, reporter)
    device = pick_device(options.device)
    classifier = load_measured(options, device, reporter)
    card, model = classifier.card, classifier.model
    folder = published_folder(options.data_dir)
    # The set itself is not looked for in a folder of CIFAR-10-C.
    dataset = load_known(replace(options, data_dir=None) if folder else options, card, reporter)
    if folder is None:
        _require_read(options.data_dir, dataset)
    else:
        require_published(folder, options.corruptions or NAMES, dataset.y_test)
    index, x, y = chosen_test_images(dataset, options.examples, options.seed)
    source = str(folder) if folder else "computed, with the constants of CIFAR-10-C's severities"
    reporter.say(f"corrupted images: {source}")

    predict = evaluating(model, model.buffers, pick_dtype(options.precision, device))
    require_taken(predict, model.params, dataset)
    y = y.to(device)
    about = heading(classifier, dataset, len(index), options.seed, options.precision, device)

    def correct(x: Tensor) -> Tensor:
        return evaluation.correct(predict, model.params, x.to(device), y, batch_size=250).cpu()

    corrupted = _corrupted(dataset, index, folder, options.seed)
    found = _measure(correct, x, corrupted, options, reporter)
    figures = {
        **about, "corrupted_images": source, **_figures(found, options.seed),
    }  # fmt: skip
    _show(figures, reporter)
    if options.json_file is not None:
        from funcrobust.report.records import write_json

        write_json(options.json_file, figures)
    if options.png is not None:
        _draw(found, options.png)
        reporter.say(f"picture  {options.png}")
    return figures


def _require_read(folder: Path | None, dataset: Dataset) -> None:
    """Raise for a folder that holds neither CIFAR-10-C nor the set: nothing would be read there.

    The set may have come from the cache, so that nobody has looked.
    """
    from funcrobust.data.sets import find
    from funcrobust.data.sources import Published
    from funcrobust.reading import user_path

    if folder is None or dataset.source == f"folder {user_path(folder)}":
        return
    known = find(dataset.name)
    assert isinstance(known, Published), "other sets refuse a folder"
    try:
        known.read_folder(user_path(folder))
    except FuncrobustError as error:
        raise FuncrobustError(
            f"--data-dir {folder} holds no .npy file of CIFAR-10-C, nor {dataset.name} ({error}): "
            "name the folder that does, or leave it out for images computed here"
        ) from error


def _corrupted(
    dataset: Dataset, index: Tensor, folder: Path | None, seed: int
) -> Callable[[str, int], Tensor]:
    """Return what gives the chosen test images under a corruption at a severity."""
    from funcrobust.data.cifar_c import published
    from funcrobust.data.corruptions import corrupt, require_corruptible

    if folder is not None:
        return lambda name, severity: published(folder, name, severity, dataset.y_test, index)
    require_corruptible(dataset.x_test)
    x = dataset.x_test[index]
    return lambda name, severity: corrupt(x, name, severity, seed=seed, numbers=index)


def _measure(
    correct: Callable[[Tensor], Tensor], x: Tensor, corrupted: Callable[[str, int], Tensor],
    options: Corruptions, reporter: Reporter,
) -> Found:  # fmt: skip
    import torch

    names, severities = options.corruptions or NAMES, options.severities or SEVERITIES
    found: dict[str, dict[int, Tensor]] = {name: {} for name in names}
    looks = {severity: [x[0]] for severity in severities}
    clean = correct(x)
    total = len(names) * len(severities) * len(x)
    with reporter.track("corruptions", total=total, unit="img") as bar:
        for name in names:
            for severity in severities:
                images = corrupted(name, severity)
                found[name][severity] = correct(images)
                looks[severity].append(images[0])
                bar.advance(len(x), now=f"{name} {severity}")
    return Found(clean, found, {s: torch.stack(row) for s, row in looks.items()})


def _figures(found: Found, seed: int) -> dict[str, Any]:
    """Return accuracies, and the intervals of the mean and of the clean one."""
    import numpy as np
    import torch
    from scipy import stats

    from funcrobust.core.binomial import share
    from funcrobust.core.randomness import derive_seed

    rows = [row for by_severity in found.corrupted.values() for row in by_severity.values()]
    each = torch.stack(rows).double().mean(0).numpy()  # an image's accuracy over all corruptions
    drawn = stats.bootstrap(
        (each,), np.mean, confidence_level=0.95, method="percentile", batch=100,
        rng=np.random.default_rng(derive_seed(seed, "bootstrap")),
    )  # fmt: skip
    clean, *clean_interval = share(int(found.clean.sum()), len(found.clean))
    return {
        "clean": clean,
        "clean_interval": clean_interval,
        "mean": float(each.mean()),
        "mean_interval": [float(end) for end in drawn.confidence_interval],
        "accuracy": {
            name: {str(severity): float(row.double().mean()) for severity, row in rows.items()}
            for name, rows in found.corrupted.items()
        },
    }


def _show(figures: dict[str, Any], reporter: Reporter) -> None:
    accuracy: dict[str, dict[str, float]] = figures["accuracy"]
    severities = list(next(iter(accuracy.values())))
    reporter.table(
        f"{figures['checkpoint']}: accuracy on {figures['examples']} test images of "
        f"{figures['dataset']}, by severity",
        ("corruption", *severities, "mean"),
        [
            (name, *(f"{value:.1%}" for value in (*row.values(), sum(row.values()) / len(row))))
            for name, row in accuracy.items()
        ],
    )
    for what, key in (("clean accuracy", "clean"), ("mean corruption accuracy", "mean")):
        low, high = figures[f"{key}_interval"]
        reporter.say(f"{what} {figures[key]:.1%} (95 %: {low:.1%} to {high:.1%})")


def _draw(found: Found, png: Path) -> None:
    from funcrobust.core.images import as_float
    from funcrobust.report import plots

    plots.image_grid(
        [(f"severity {severity}", as_float(row)) for severity, row in found.looks.items()],
        png,
        column_labels=["clean", *(name.replace("_", " ") for name in found.corrupted)],
        title="One test image under the corruptions of CIFAR-10-C",
    )
