"""What ``cure-train`` draws."""

from __future__ import annotations

import torch

from funcrobust import data
from funcrobust.commands.cure_train.options import CureTrain
from funcrobust.core.balls.ball import Ball
from funcrobust.core.losses import cross_entropy
from funcrobust.core.network.functional import Params, Predict
from funcrobust.core.perturbations.projected_gradient import pgd
from funcrobust.report import plots
from funcrobust.report.runs import RunFolder
from funcrobust.running.dataset import first_of_each_class
from funcrobust.running.threat import written_threat


def draw(
    options: CureTrain, predict: Predict, params: Params, dataset: data.Dataset, ball: Ball,
    run: RunFolder,
) -> None:  # fmt: skip
    """Curves, and a picture of what the attack does to the first test image of each class."""
    records = run.metrics()
    terms = [name for name in ("loss", "curvature", "restoration", *options.regularisers)
             if any(name in record for record in records)]  # fmt: skip
    accuracies = [
        f"{split}_{what}" for what in ("clean", "robust", "worst") for split in ("train", "test")
    ]
    plots.curves(
        records, run.file("curves.png"), title=f"cure-train {run.path.name}",
        panels={name: [name] for name in terms} | {"accuracy": [*accuracies, "train_attacked"]},
    )  # fmt: skip
    x, y = first_of_each_class(dataset)
    attack = pgd(
        cross_entropy(predict), ball, step_size=options.epsilon / 4, steps=options.evaluate_steps
    )
    with torch.no_grad():
        fooled = attack(params, x, y)
        names = dataset.class_names
        before = [names[i] for i in predict(params, x).argmax(-1).tolist()]
        after = [names[i] for i in predict(params, fooled).argmax(-1).tolist()]
    change, factor = plots.change_row(x, fooled)
    plots.image_grid(
        [("test image", x), (f"PGD-{options.evaluate_steps}", fooled),
         (f"change ×{factor:g}", change)],
        run.file("adversarial.png"),
        column_labels=[f"{names[c]}\n{b} → {a}" for c, b, a in
                       zip(y.tolist(), before, after, strict=True)],
        title=f"{options.model} under {written_threat(options.constraint, options.epsilon)}",
        caption="Under each true class: predicted on the test image → predicted after the attack. "
        "Gray in the last row is no change.",
    )  # fmt: skip
