"""What ``psi-train`` draws."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from funcrobust import data
from funcrobust.commands.psi_train.compose import STARTS
from funcrobust.commands.psi_train.work import FAR, Work
from funcrobust.core.training.updates import State
from funcrobust.report import plots


def draw(work: Work, state: State) -> None:
    """Curves, ψ before and after, and the start images if they were learned."""
    run, options = work.run, work.options
    plots.curves(
        run.metrics(), run.file("curves.png"), x="step", title=f"psi-train {run.path.name}",
        panels={"drift": ["drift", "heldout_drift"], "anchor": ["anchor"],
                "accuracy": ["clean"]},
    )  # fmt: skip
    before_after(work, state, run.file("before_after.png"))
    if STARTS in state.params:
        learned = (options.starts_rate * state.params[STARTS][:10]).clamp(0, 1)
        begun = data.as_float(work.dataset.x_train[: len(learned)])
        plots.image_grid(
            [("training image", begun), ("learned start", learned)], run.file("starts.png"),
            title="Start images learned along with the network",
        )  # fmt: skip


def before_after(work: Work, state: State, path: Path) -> None:
    """ψ before and after training, from real images and from class-conditional Gaussians."""
    options, dataset = work.options, work.dataset
    x, y, starts = work.pictured
    steps = max(options.steps, FAR)
    rows: list[tuple[str, Tensor]] = [("test image", x)]
    walks: list[tuple[str, Tensor]] = []
    factor = None
    for when, (moved, walked) in (("before", work.drawn_before), ("after", work.drawn(state))):
        change, factor = plots.change_row(x, moved, factor)
        rows += [(f"ψ {when}", moved), (f"(ψ − x) {when} ×{factor:g}", change)]
        walks.append((f"{steps} steps, {when}", walked))
    plots.image_grid(
        [*rows, ("Gaussian start", starts), *walks], path,
        column_labels=[dataset.class_names[c] for c in y.tolist()],
        title=f"ψ before and after {int(state.step)} updates",
        caption=f"ψ: {options.steps} {options.constraint} steps of {options.step_size:g} on test "
        f"images (gray: no change); below, {steps} steps from class-conditional Gaussian noise "
        "toward each class.",
    )  # fmt: skip
