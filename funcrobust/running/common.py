"""What both recipes do before and after training."""

from __future__ import annotations

import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from funcrobust import checkpoints, data
from funcrobust.checkpoints import Card, save
from funcrobust.core import evaluation
from funcrobust.core.balls.ball import Ball
from funcrobust.core.balls.fourier import fourier
from funcrobust.core.balls.l2 import l2
from funcrobust.core.balls.linf import linf
from funcrobust.core.balls.unconstrained import unconstrained
from funcrobust.core.errors import FuncrobustError
from funcrobust.core.network.functional import Buffers, Functional, Params, Predict, autocast
from funcrobust.core.randomness import generator
from funcrobust.core.training.compiling import compile_checked
from funcrobust.core.training.updates import State, Update
from funcrobust.report.console import Reporter
from funcrobust.report.runs import RunFolder
from funcrobust.running.loop import load_state
from funcrobust.running.options import CommonOptions

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
CHECKPOINT_FILE = "checkpoint.safetensors"


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device that is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FuncrobustError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise FuncrobustError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FuncrobustError("CUDA was asked for, but no CUDA device is here: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FuncrobustError(f"{name} is not here: there are {torch.cuda.device_count()} devices")
    return device


def pick_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into bf16 where the hardware multiplies it, else fp32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16, which is slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def pick_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Turn "fp32", "bf16" or "auto" into autocast's dtype."""
    precision = pick_precision(precision, device)
    if precision not in PRECISIONS:
        known = ", ".join([*PRECISIONS, "auto"])
        raise FuncrobustError(f"unknown precision {precision!r}: use one of {known}")
    return PRECISIONS[precision]


def pick_ball(constraint: str, radius: float) -> Ball:
    """Build the named threat model; robustness's names "2" and "inf" are known too."""
    if not 0 <= radius < float("inf"):
        raise FuncrobustError(f"eps must be a finite number >= 0, got {radius}")
    if constraint in ("linf", "inf"):
        if radius > 1:
            raise FuncrobustError(
                f"eps = {radius:g} exceeds the data range [0, 1]: write 8/255 for eight gray levels"
            )
        return linf(radius)
    if constraint in ("l2", "2"):
        return l2(radius)
    if constraint == "unconstrained":
        return unconstrained()
    if constraint == "fourier":
        return fourier()
    raise FuncrobustError(
        f"unknown constraint {constraint!r}: use linf, l2, unconstrained or fourier"
    )


def load_data(options: CommonOptions, device: torch.device, reporter: Reporter) -> data.Dataset:
    """Load, cut to size and move to the device."""
    dataset = data.load(
        options.dataset, folder=options.data_dir, progress=reporter.progress_callback()
    )
    reporter.say(
        f"{dataset.name}: {len(dataset.y_train)} training and {len(dataset.y_test)} test images "
        f"of {'x'.join(map(str, dataset.image_shape))} ({dataset.source})"
    )
    dataset = shuffled_if_sorted(dataset)
    return dataset.subset(options.train_examples, options.test_examples, options.seed).to(device)


def shuffled_if_sorted(dataset: data.Dataset) -> data.Dataset:
    """Shuffle splits that come class by class, as folders do: their first part must stand for all.

    The order depends on the number of images alone.
    """
    for x, y in (("x_train", "y_train"), ("x_test", "y_test")):
        labels = getattr(dataset, y)
        if len(labels) > 1 and bool((labels.diff() >= 0).all()):
            order = torch.randperm(len(labels), generator=generator(0, "shuffle"))
            changed = {x: getattr(dataset, x)[order], y: labels[order]}
            dataset = replace(dataset, **changed)
    return dataset


def dataset_for(given: str | None, card: Card) -> str:
    """Use the data the classifier was made for, unless told otherwise."""
    if not given and card.dataset == "unknown":
        raise FuncrobustError("this checkpoint does not say which data it is for: use --dataset")
    return given or card.dataset


STRONGEST = "cifar10-linf-small"
"""The shipped classifier to measure, to transfer and to draw with."""

JUDGE = "cifar10-standard-small"
"""The shipped standard classifier, which made none of the images it judges."""


def default_checkpoint(preferred: str) -> str:
    """Return the preferred shipped classifier's name, or another's if it is not there."""
    shipped = checkpoints.shipped()
    if not shipped:
        raise FuncrobustError(
            "no classifier is shipped here: train one with cure-train, and name its run folder"
        )
    return preferred if preferred in shipped else next(iter(shipped))


def require_same_images(card: Card, dataset: data.Dataset) -> None:
    """Raise unless the classifier takes the dataset's images and knows its classes.

    A foreign file says nothing of its images' size: there the channels alone are compared.
    """
    known = 1 if card.dataset == "unknown" else 3
    same = card.image_shape[:known] == dataset.image_shape[:known]
    if not same or card.num_classes != dataset.num_classes:
        shape = "x".join(map(str, card.image_shape))
        raise FuncrobustError(
            f"the checkpoint classifies {shape} images into {card.num_classes} classes, "
            f"but {dataset.name} has {'x'.join(map(str, dataset.image_shape))} in "
            f"{dataset.num_classes}: give another dataset or checkpoint"
        )


def rehearse(model: Functional, dataset: data.Dataset) -> None:
    """Run the network once in training mode: what it cannot do shows now, not an epoch later."""
    x = data.as_float(dataset.x_train[:2])
    try:
        logits, _ = model.predict_train(model.params, model.buffers, x)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise FuncrobustError(
            f"the network cannot take {dataset.name}'s images: {reason}"
        ) from None
    if logits.shape != (2, dataset.num_classes):
        raise FuncrobustError(
            f"the network gives {tuple(logits.shape)} for 2 images, and not (2, "
            f"{dataset.num_classes}) logits for {dataset.name}'s classes"
        )


def maybe_compile(
    update: Update,
    *,
    state: State,
    batch: Any,
    options: CommonOptions,
    reporter: Reporter,
) -> Update:
    """Compile the update if asked to (or on CUDA), checked against the eager one."""
    device = next(iter(state.params.values())).device
    if not (device.type == "cuda" if options.compile is None else options.compile):
        return update
    reporter.say("compiling the update, and checking it against the eager one ...")
    began = time.perf_counter()
    compiled = compile_checked(update, state, batch)
    reporter.say(f"compiled equals eager ({time.perf_counter() - began:.0f} s)")
    return compiled


def program() -> str:
    """Return how this program is called from the current folder."""
    return "python cli.py" if Path("cli.py").is_file() else "funcrobust"


def to_device(model: Functional, device: torch.device) -> Functional:
    """Move, in the memory layout that convolutions are fastest in."""
    return model.to(device, torch.channels_last)


def measure(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    reporter: Reporter,
    *,
    ball: Ball,
    steps: int,
    seed: int,
    title: str,
    restarts: int = 1,
    step_size: float | None = None,
    batch_size: int = 250,
) -> dict[str, float]:
    """Measure clean and PGD accuracy with a bar; the default step is radius/4 (2/255 of 8/255)."""
    if step_size is None:
        step_size = getattr(ball, "radius", 1.0) / 4
    clean = evaluation.correct(predict, params, x, y)
    with reporter.track(title, total=len(x) * restarts, unit="img") as bar:
        attack = evaluation.Pgd(ball, step_size, steps, restarts, seed)
        robust = evaluation.robust(
            predict, params, x, y, attack, batch_size=batch_size, advance=bar.advance
        )
    return {"clean": float(clean.float().mean()), "robust": float(robust.float().mean())}


def save_checkpoint(
    run: RunFolder, params: Params, buffers: Buffers, card: Card, name: str = CHECKPOINT_FILE
) -> None:
    """Write parameters, buffers and card into the run folder."""
    save(run.file(name), {**params, **buffers}, card)


def config(options: CommonOptions) -> dict[str, Any]:
    """Return the options as JSON can hold them."""
    plain = asdict(options) | {"argv": list(options.argv)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


Options = TypeVar("Options", bound=CommonOptions)


def resumed_options(folder: Path, command: str, defaults: Options) -> Options:
    """Rebuild the options of the run in ``folder`` from its config.json."""
    run = RunFolder.open(folder)
    if run.record.get("command") != command:
        raise FuncrobustError(
            f"{folder} is a {run.record.get('command')} run: {command} cannot resume it"
        )
    stored = {f.name: run.config[f.name] for f in fields(defaults) if f.name in run.config}
    for path in ("data_dir", "out"):
        stored[path] = None if stored.get(path) in (None, "None") else Path(stored[path])
    return replace(defaults, **stored | {"argv": tuple(stored.get("argv", ()))})


def open_run(
    command: str, options: CommonOptions, state: State, steps: int, resume: Path | None
) -> tuple[RunFolder, State]:
    """Make a run's folder; or open the one to resume, and its state in place of ``state``."""
    if resume is None:
        return RunFolder.create(options.out, command, config(options), options.name), state
    run = RunFolder.open(resume)
    state = load_state(run, state)
    if int(state.step) >= steps:
        raise FuncrobustError(f"{resume} is complete: there is nothing left to resume")
    run.truncate_metrics(lambda record: record["step"] <= int(state.step))
    return run, state


def evaluating(model: Functional, buffers: Buffers, dtype: torch.dtype | None) -> Predict:
    """Evaluation-mode prediction with the given statistics and precision."""
    return autocast(model.with_buffers(buffers), dtype)
