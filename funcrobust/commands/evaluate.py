"""Measure clean accuracy, and accuracy under PGD with restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from funcrobust.running.groups import Images, Machine, Precision, Radius
from funcrobust.running.options import Count, Flag, Weight

if TYPE_CHECKING:
    from funcrobust.report.console import Reporter


@dataclass(frozen=True, kw_only=True)
class Evaluate(Images, Machine):
    """Evaluation."""

    checkpoint: str | None = field(default=None, kw_only=False)
    """File, run folder, shipped name or robustbench:NAME; left out: the shipped classifier."""
    model: str | None = None
    """Architecture of a foreign .pt file, or the factory of a checkpoint of your own network."""
    examples: Count = 1000
    """Test images."""
    steps: Count = 20
    """Steps of PGD."""
    restarts: Count = 1
    """Random starts; the worst counts."""
    constraint: Literal["linf", "l2"] | None = None
    """The threat model; left out: the checkpoint's."""
    epsilon: Radius | None = None
    """Its radius; left out: the checkpoint's."""
    step_size: Weight | None = None
    """Of PGD; left out: radius / 4."""
    precision: Precision = "fp32"
    """fp32, bf16 for autocast, or auto: bf16 where the hardware multiplies it."""
    json_file: Annotated[Path | None, Flag("--json")] = None
    """Write the figures there; - prints them alone."""

    @property
    def quiet(self) -> bool:
        """Whether standard output is for the figures."""
        return str(self.json_file) == "-"


def run(options: Evaluate, reporter: Reporter) -> dict[str, Any]:
    """Measure; show a table, write JSON if asked; return the figures.

    The threat model is the one the checkpoint was trained against, unless given.
    """
    from funcrobust.report.records import write_json
    from funcrobust.running.classifier import load_classifier
    from funcrobust.running.dataset import load_known
    from funcrobust.running.machine import pick_device, pick_dtype
    from funcrobust.running.measuring import evaluating, measure
    from funcrobust.running.threat import pick_ball

    device = pick_device(options.device)
    name, card, _, model = load_classifier(
        options.checkpoint, device, reporter, model=options.model
    )
    constraint = options.constraint or card.constraint
    epsilon = card.epsilon if options.epsilon is None else options.epsilon
    ball = pick_ball(constraint, epsilon)
    dataset = load_known(options, card, reporter).to(device)
    predict = evaluating(model, model.buffers, pick_dtype(options.precision, device))
    x, y = dataset.x_test[: options.examples], dataset.y_test[: options.examples]
    attack = f"PGD-{options.steps}" + (f"-{options.restarts}" if options.restarts > 1 else "")
    step_size = epsilon / 4 if options.step_size is None else options.step_size
    found = measure(
        predict, model.params, x, y, reporter, ball=ball, steps=options.steps,
        restarts=options.restarts, step_size=step_size, seed=options.seed, title=attack,
    )  # fmt: skip
    reporter.table(
        f"{name}: {card.model} on {dataset.name}, {len(y)} test images, {constraint} "
        f"ε = {epsilon:.4g}",
        ("clean", attack),
        [(f"{found['clean']:.2%}", f"{found['robust']:.2%}")],
    )
    figures = {
        "checkpoint": name, "model": card.model, "dataset": dataset.name, "examples": len(y),
        "attack": "pgd", "constraint": constraint, "epsilon": epsilon, "steps": options.steps,
        "restarts": options.restarts, "step_size": step_size, "seed": options.seed, **found,
    }  # fmt: skip
    if options.json_file is not None:
        write_json(options.json_file, figures)
    return figures
