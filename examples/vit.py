"""A transformer of timm, trained with CURE and against an adversary, and then drawing by ψ.

Attention needs no special care: functionalize takes its plain form, which has the derivatives of
second order that CURE and ψ want.
"""

import sys
import warnings

import torch
from sklearn.neighbors import KNeighborsClassifier

import funcrobust as fr
from funcrobust import data
from funcrobust.files import place_of
from funcrobust.report import plots


def train(model: fr.Functional, digits: data.Dataset) -> fr.Params:
    """Train on images as they are, then against an adversary, with CURE on a quarter of a batch."""
    attack = fr.rs_fgsm(fr.linf(0.15))

    def plain(modes: fr.Modes, _batch: fr.Batch) -> fr.Terms:
        return {"loss": (1.0, fr.cross_entropy(modes.training))}

    def robust(modes: fr.Modes, batch: fr.Batch) -> fr.Terms:
        few = len(batch.x) // 4
        cure = fr.at(fr.cure(fr.cross_entropy(modes.batch), h=0.75), batch.x[:few], batch.y[:few])
        fit = fr.adversarial(fr.cross_entropy(modes.training), attack, start=batch.start)
        return {"loss": (1.0, fit), "curvature": (0.1, cure)}

    optim = fr.optimizer("adam", 2e-3)
    state, done = fr.initial_state(model, optim), 0
    for compose, updates in ((plain, 250), (robust, 150)):  # against one at once nothing is learned
        update = fr.make_update(fr.training_objective(model, compose), optim)
        for step in range(done, done + updates):
            draw = fr.generator(0, "example", step)
            rows = torch.randint(len(digits.x_train), (64,), generator=draw)
            x, y = data.as_float(digits.x_train[rows]), digits.y_train[rows]
            state, _ = update(state, fr.Batch(x, y, attack.start(x, draw)))
        done += updates
    return state.params


def main(named: str | None = None) -> None:
    """Train, draw every digit, and ask a judge that never saw the transformer."""
    png, digits = place_of(named, "vit.png"), data.load("digits")
    try:
        with warnings.catch_warnings(action="ignore"):  # of timm's about torch
            import timm
    except ImportError:
        print("timm is not installed, and this example is about it: pip install timm")
        return
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10,
        embed_dim=48, depth=2, num_heads=4,
    )  # fmt: skip
    model = fr.functionalize(module)
    params = train(model, digits)

    wanted = torch.arange(10)
    mean = data.as_float(digits.x_train).mean(0).expand(10, -1, -1, -1).contiguous()
    loss, ball = fr.cross_entropy(model.predict), fr.l2(3.0)
    psi = fr.psi(loss, ball, step_size=0.15, steps=20, targeted=True)
    with torch.no_grad():
        made = psi(params, mean, wanted)
    right = model.predict(params, data.as_float(digits.x_test)).argmax(-1) == digits.y_test
    judge = KNeighborsClassifier(5).fit(digits.x_train.flatten(1).numpy() / 255, digits.y_train)
    seen = torch.as_tensor(judge.predict(made.flatten(1).numpy()))
    said = f"of 10 digits that ψ draws, nearest neighbours recognise {(seen == wanted).sum()}"
    print(f"accuracy {right.double().mean():.1%}; {said}")
    plots.image_grid(
        [("mean of all digits", mean), ("ψ from there", made)], png,
        column_labels=digits.class_names, title="A vision transformer draws",
        caption=f"{said[0].upper()}{said[1:]}.",
    )  # fmt: skip
    print(f"picture  {png}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
