"""``evaluate`` and ``data``: measure a checkpoint, describe a dataset."""

from __future__ import annotations

import json
from pathlib import Path

from funcrobust import checkpoints, data
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.core.network.functional import functionalize
from funcrobust.files import atomic_write
from funcrobust.report.console import Reporter
from funcrobust.running import common
from funcrobust.running.options import CommonOptions


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
    where = common.pick_device(device)
    dtype = common.pick_dtype(precision, where)
    require_count("examples", examples, minimum=1)
    name = checkpoint or common.default_checkpoint(common.STRONGEST)
    module, card = checkpoints.load(name, model=model)
    constraint = constraint or card.constraint
    epsilon = card.epsilon if epsilon is None else epsilon
    ball = common.pick_ball(constraint, epsilon)
    options = CommonOptions(dataset=common.dataset_for(dataset, card), data_dir=data_dir)
    loaded = common.load_data(options, where, reporter)
    common.require_same_images(card, loaded)
    functional = common.to_device(functionalize(module), where)
    predict = common.evaluating(functional, functional.buffers, dtype)
    x, y = loaded.x_test[:examples], loaded.y_test[:examples]
    attack = f"PGD-{steps}" + (f"-{restarts}" if restarts > 1 else "")
    found = common.measure(
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
