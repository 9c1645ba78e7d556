"""``evaluate`` and ``data``: measure a checkpoint, describe a dataset."""

from __future__ import annotations

import json
from pathlib import Path

from funcrobust import checkpoints, data
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.network.functional import functionalize
from funcrobust.files import atomic_write
from funcrobust.report.console import Reporter
from funcrobust.running.classifier import STRONGEST, default_checkpoint
from funcrobust.running.dataset import dataset_for, load_data, require_same_images
from funcrobust.running.machine import pick_device, pick_dtype, to_device
from funcrobust.running.measuring import evaluating, measure
from funcrobust.running.options import CommonOptions
from funcrobust.running.threat import pick_ball


def evaluate(
    checkpoint: str | None,
    reporter: Reporter,
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    examples: int = 1000,
    steps: int = 20,
    restarts: int = 1,
    constraint: str | None = None,
    epsilon: float | None = None,
    step_size: float | None = None,
    model: str | None = None,
    precision: str = "fp32",
    seed: int = 0,
    device: str = "auto",
    json_file: Path | None = None,
) -> dict[str, object]:
    """Measure clean and PGD accuracy; show a table, write JSON if asked.

    The threat model is the one the checkpoint was trained against, unless given.
    """
    where = pick_device(device)
    dtype = pick_dtype(precision, where)
    require_count("examples", examples, minimum=1)
    name = checkpoint or default_checkpoint(STRONGEST)
    module, card = checkpoints.load(name, model=model)
    constraint = constraint or card.constraint
    epsilon = card.epsilon if epsilon is None else epsilon
    ball = pick_ball(constraint, epsilon)
    options = CommonOptions(dataset=dataset_for(dataset, card), data_dir=data_dir)
    loaded = load_data(options, where, reporter)
    require_same_images(card, loaded)
    functional = to_device(functionalize(module), where)
    predict = evaluating(functional, functional.buffers, dtype)
    x, y = loaded.x_test[:examples], loaded.y_test[:examples]
    attack = f"PGD-{steps}" + (f"-{restarts}" if restarts > 1 else "")
    found = measure(
        predict, functional.params, x, y, reporter, ball=ball, steps=steps, restarts=restarts,
        step_size=step_size, seed=seed, title=attack,
    )  # fmt: skip
    reporter.table(
        f"{name}: {card.model} on {loaded.name}, {len(y)} test images, {constraint} "
        f"ε = {epsilon:.4g}",
        ("clean", attack),
        [(f"{found['clean']:.2%}", f"{found['robust']:.2%}")],
    )
    figures: dict[str, object] = {
        "checkpoint": str(name), "model": card.model, "dataset": loaded.name,
        "examples": len(y), "attack": "pgd", "constraint": constraint, "epsilon": epsilon,
        "steps": steps, "restarts": restarts, "step_size": step_size or epsilon / 4,
        "seed": seed, **found,
    }  # fmt: skip
    _write_json(figures, json_file)
    return figures


def _write_json(figures: dict[str, object], json_file: Path | None) -> None:
    if json_file is None:
        return
    text = json.dumps(figures, indent=2) + "\n"
    if str(json_file) == "-":
        print(text, end="")
    else:
        atomic_write(json_file, text)


def describe_data(name: str, data_dir: Path | None, reporter: Reporter) -> None:
    """Load a dataset (fetching it if need be) and show what it holds."""
    loaded = data.load(name, folder=data_dir, progress=reporter.progress_callback())
    if not len(loaded.y_train):
        raise FuncrobustError(f"{name} has no training images")
    reporter.table(
        f"{loaded.name} ({loaded.source})",
        ("split", "images", "shape", "mean", "standard deviation"),
        [
            ("train", str(len(loaded.y_train)), "x".join(map(str, loaded.image_shape)),
             " ".join(f"{m:.4f}" for m in loaded.mean), " ".join(f"{s:.4f}" for s in loaded.std)),
            ("test", str(len(loaded.y_test)), "x".join(map(str, loaded.image_shape)), "", ""),
        ],
    )  # fmt: skip
    reporter.say(f"classes: {', '.join(loaded.class_names)}")
    reporter.say(f"cache: {data.default_cache()}")
