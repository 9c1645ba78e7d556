"""The command line: flags in, recipes out. Nothing is computed here.

Every flag left out is None, so that a preset can fill it; the defaults live in
`funcrobust.running.options` and nowhere else. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from funcrobust.core.errors import FuncrobustError

app = typer.Typer(
    name="funcrobust",
    help="Adversarial robustness as pure functions: train, transfer, measure and look.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def number(text: str | float) -> float:
    """Read "8/255" or "0.031" as a number."""
    top, slash, bottom = str(text).partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is not a number like 0.031 or 8/255") from None


def option(*flags: str, help: str, panel: str = "", numeric: bool = False) -> Any:
    """Make one flag; ``numeric`` reads fractions."""
    parser = number if numeric else None
    return typer.Option(
        *flags, help=help, parser=parser, metavar="NUMBER" if numeric else None,
        rich_help_panel=panel or None, show_default=False,
    )  # fmt: skip


Dataset = Annotated[
    str | None,
    option("--dataset", help="cifar10, cifar100, svhn, fashion_mnist, digits, FILE.npz, FOLDER"),
]
DataDir = Annotated[Path | None, option("--data-dir", help="a local folder that holds the data")]
Out = Annotated[Path | None, option("--out", help="where run folders go [runs]")]
Log = Annotated[str | None, option("--log", help="also log to: none, tensorboard or wandb [none]")]
Name = Annotated[str | None, option("--name", help="the run folder's name [date-command]")]
Device = Annotated[str | None, option("--device", help="auto, cpu, cuda or cuda:N [auto]")]
Seed = Annotated[int | None, option("--seed", help="every random number follows from it [0]")]
Precision = Annotated[
    str | None, option("--precision", help="fp32, bf16 for autocast, or auto: bf16 if native")
]
Compile = Annotated[
    bool | None, option("--compile/--no-compile", help="the update as one graph [on CUDA only]")
]
TrainExamples = Annotated[
    int | None, option("--train-examples", help="use so many training images [all]")
]
TestExamples = Annotated[int | None, option("--test-examples", help="use so many test images")]
EvaluateExamples = Annotated[
    int | None, option("--evaluate-examples", help="test images behind the final figures [1000]")
]
EvaluateSteps = Annotated[
    int | None, option("--evaluate-steps", help="PGD steps behind the final figures [20]")
]
Momentum = Annotated[float | None, option("--momentum", help="SGD's momentum [0.9]")]
WeightDecay = Annotated[float | None, option("--weight-decay", help="L2 regularisation")]
Opt = Annotated[str | None, option("--opt", help="SGD or Adam [SGD]")]
BatchSize = Annotated[int | None, option("--batch-size", help="images an update sees")]
LrSchedule = Annotated[
    str | None,
    option(
        "--lr-schedule",
        help="piecewise, linear, cyclic, cosine, onedrop, multipledecay, superconverge, constant",
    ),
]
LrMax = Annotated[float | None, option("--lr-max", help="highest learning rate")]
LrMin = Annotated[float | None, option("--lr-min", help="floor of the learning rate [0]")]


def given(arguments: dict[str, Any], *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keep what was given on the command line, and the command line itself."""
    kept = {k: v for k, v in arguments.items() if v is not None and k not in leave}
    return kept | {"argv": tuple(sys.argv[1:])}


@app.command("cure-train")
def cure_train(
    preset: Annotated[
        str,
        option(
            "--preset", help="auto, cpu, fast, strong, paper-short, paper-long or digits [auto]"
        ),
    ] = "auto",
    model: Annotated[
        str | None, option("--model", help="a network's name, or package.module:factory")
    ] = None,
    epochs: Annotated[int | None, option("--epochs", help="passes over the training set")] = None,
    batch_size: BatchSize = None,
    delta: Annotated[
        str | None, option("--delta", help="CURE's direction: classic, random, fgsm, linf or none")
    ] = None,
    h: Annotated[float | None, option("--h", help="CURE's finite-difference length [3]")] = None,
    lam: Annotated[float | None, option("--lambda", help="weight of CURE [1]")] = None,
    units: Annotated[
        str | None,
        option("--units", help="of h and lambda: normalized (the document's code) or pixel"),
    ] = None,
    h_schedule: Annotated[
        str | None, option("--h-schedule", help="of h: constant, paper (5 stages) or linear")
    ] = None,
    cure_fraction: Annotated[
        float | None, option("--cure-fraction", help="share of each batch that is regularised")
    ] = None,
    cure_every: Annotated[
        int | None, option("--cure-every", help="regularise every k-th update, k times as much [1]")
    ] = None,
    cure_statistics: Annotated[
        str | None,
        option(
            "--cure-statistics",
            help="batch norm in the regularisers: batch, held or running [batch]",
        ),
    ] = None,
    cure_backward: Annotated[
        str | None,
        option("--cure-backward", help="shared, batched, forward, central or one-sided [shared]"),
    ] = None,
    attack: Annotated[
        str | None,
        option("--attack", help="train on rs-fgsm, n-fgsm, zerograd, pgd or none [rs-fgsm]"),
    ] = None,
    attack_steps: Annotated[
        int | None, option("--attack-steps", help="of --attack pgd [10]")
    ] = None,
    noise: Annotated[
        float | None, option("--noise", help="n-fgsm's noise, in units of epsilon [2]")
    ] = None,
    quantile: Annotated[
        float | None, option("--quantile", help="zerograd's dropped share [0.35]")
    ] = None,
    attack_statistics: Annotated[
        str | None,
        option("--attack-statistics", help="batch norm in the attack: batch or running [batch]"),
    ] = None,
    constraint: Annotated[str | None, option("--constraint", help="linf or l2 [linf]")] = None,
    epsilon: Annotated[
        float | None, option("--epsilon", "--eps", help="the ball's radius [8/255]", numeric=True)
    ] = None,
    alpha: Annotated[
        float | None, option("--alpha", help="the attack's step [1.25 epsilon]", numeric=True)
    ] = None,
    delta_init: Annotated[
        str | None, option("--delta-init", help="the attack's start: random or zero [random]")
    ] = None,
    kappa: Annotated[float | None, option("--kappa", help="weight of the loss on x itself")] = None,
    trades: Annotated[
        float | None, option("--trades", help="TRADES with this beta, for the loss on x-hat")
    ] = None,
    hat: Annotated[float | None, option("--hat", help="weight of HAT's helper examples")] = None,
    helper: Annotated[
        str | None, option("--helper", help="HAT's standard network: a checkpoint")
    ] = None,
    gradalign: Annotated[float | None, option("--gradalign", help="weight of GradAlign")] = None,
    llr: Annotated[float | None, option("--llr", help="weight of local linearity (LLR)")] = None,
    elle: Annotated[float | None, option("--elle", help="weight of ELLE")] = None,
    input_gradient: Annotated[
        float | None, option("--input-gradient", help="weight of the squared input gradient")
    ] = None,
    lr_schedule: LrSchedule = None,
    lr_max: LrMax = None,
    lr_min: LrMin = None,
    opt: Opt = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    ema: Annotated[
        float | None, option("--ema", help="decay of the weight average that is kept; 0: none")
    ] = None,
    label_smoothing: Annotated[float | None, option("--label-smoothing", help="in [0, 1)")] = None,
    precision: Precision = None,
    compile: Compile = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    train_examples: TrainExamples = None,
    test_examples: TestExamples = None,
    evaluate_examples: EvaluateExamples = None,
    evaluate_steps: EvaluateSteps = None,
    robust_examples: Annotated[
        int | None, option("--robust-examples", help="attacked after every epoch [256]")
    ] = None,
    seed: Seed = None,
    device: Device = None,
    out: Out = None,
    name: Name = None,
    log: Log = None,
    resume: Annotated[
        Path | None, option("--resume", help="a run folder to continue, with its own options")
    ] = None,
) -> None:
    """Train a robust classifier: fast adversarial training with CURE."""
    arguments = given(locals(), leave=("preset", "resume"))
    from funcrobust.commands.cure_train import presets
    from funcrobust.commands.cure_train import run as cure_train
    from funcrobust.running.machine import pick_device
    from funcrobust.running.options import CureOptions
    from funcrobust.running.state import resumed_options

    with reporter() as report:
        if resume is not None:
            options = resumed_options(resume, "cure-train", CureOptions())
        else:
            where = pick_device(arguments.get("device", "auto"))
            options = presets.cure_options(arguments, preset, where)
        finish(cure_train.cure_train(options, report, resume=resume).status)


@app.command("psi-train")
def psi_train(
    checkpoint: Annotated[
        str | None,
        option("--checkpoint", help="file, run folder or shipped name [the shipped classifier]"),
    ] = None,
    model: Annotated[
        str | None, option("--model", help="architecture of a foreign .pt file, or your factory")
    ] = None,
    updates: Annotated[int | None, option("--updates", help="SGD updates [140]")] = None,
    batch_size: BatchSize = None,
    distance: Annotated[
        str | None, option("--distance", help="between x and psi(x): mse, l1 or ssim [mse]")
    ] = None,
    targeted: Annotated[
        bool | None, option("--targeted/--untargeted", help="toward the label, or away from it")
    ] = None,
    label: Annotated[
        str | None, option("--label", help="own, random, or a class number [own]")
    ] = None,
    steps: Annotated[int | None, option("--steps", help="steps of psi [5]")] = None,
    step_size: Annotated[
        float | None, option("--step-size", help="of psi [0.5]", numeric=True)
    ] = None,
    eps: Annotated[
        float | None, option("--eps", help="radius of psi's ball [30]", numeric=True)
    ] = None,
    constraint: Annotated[
        str | None, option("--constraint", help="of psi: l2, unconstrained or fourier [l2]")
    ] = None,
    backward: Annotated[
        str | None,
        option(
            "--backward",
            help="adjoint, segmented, unroll, truncated:k, implicit, one_step",
        ),
    ] = None,
    psi_loss: Annotated[
        str | None,
        option("--psi-loss", help="psi descends cross-entropy, margin, logit or entropy"),
    ] = None,
    start: Annotated[
        str | None,
        option("--start", help="psi starts from images: made, own, gaussian or noise [made]"),
    ] = None,
    start_noise: Annotated[
        float | None, option("--start-noise", help="largest share of that mixture [0.5]")
    ] = None,
    learn_starts: Annotated[
        int | None, option("--learn-starts", help="optimise so many start images as well [0]")
    ] = None,
    starts_rate: Annotated[
        float | None, option("--starts-rate", help="their learning rate's root [30]")
    ] = None,
    entropy: Annotated[
        float | None, option("--entropy", help="weight of the entropy where psi ends [0]")
    ] = None,
    drift_weight: Annotated[
        float | None, option("--drift-weight", help="0 is a control, the anchor alone [1]")
    ] = None,
    drift_fraction: Annotated[
        float | None, option("--drift-fraction", help="share of the batch that psi runs on [0.25]")
    ] = None,
    anchor: Annotated[
        float | None, option("--anchor", help="weight of the anchor; 0: the drift alone [40]")
    ] = None,
    anchor_loss: Annotated[
        str | None,
        option(
            "--anchor-loss",
            help="keep what the network does; or cross-entropy: clean, robust or both",
        ),
    ] = None,
    anchor_steps: Annotated[
        int | None, option("--anchor-steps", help="PGD steps of the robust anchor; 1: FGSM")
    ] = None,
    strips: Annotated[
        int | None, option("--strips", help="pictures to leave along the way [5]")
    ] = None,
    aim: Annotated[
        float | None, option("--aim", help="stop at this share of drift lost; 1: never [0.28]")
    ] = None,
    lr_max: Annotated[float | None, option("--lr-max", "--lr", help="learning rate")] = None,
    lr_min: LrMin = None,
    lr_schedule: LrSchedule = None,
    opt: Opt = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    clip_norm: Annotated[
        float | None, option("--clip-norm", help="largest gradient norm; 0: unclipped [1]")
    ] = None,
    precision: Precision = None,
    compile: Compile = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    train_examples: TrainExamples = None,
    test_examples: TestExamples = None,
    heldout_examples: Annotated[
        int | None, option("--heldout-examples", help="test images behind the drift [512]")
    ] = None,
    evaluate_examples: EvaluateExamples = None,
    evaluate_steps: EvaluateSteps = None,
    epsilon: Annotated[
        float | None,
        option(
            "--epsilon", help="L-inf radius of the robust accuracy [the checkpoint's]", numeric=True
        ),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    out: Out = None,
    name: Name = None,
    log: Log = None,
    resume: Annotated[
        Path | None, option("--resume", help="a run folder to continue, with its own options")
    ] = None,
) -> None:
    """Transfer a robust classifier: minimise how far psi moves images, by its exact derivative."""
    arguments = given(locals(), leave=("resume",))
    from funcrobust.commands.cure_train import presets
    from funcrobust.commands.psi_train.run import psi_train
    from funcrobust.running.options import PsiOptions
    from funcrobust.running.state import resumed_options

    with reporter() as report:
        options = presets.fill(PsiOptions(), arguments)
        if resume is not None:
            options = resumed_options(resume, "psi-train", PsiOptions())
        finish(psi_train(options, report, resume=resume).status)


@app.command()
def evaluate(
    checkpoint: Annotated[
        str | None, typer.Argument(help="file, run folder or shipped name")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    examples: Annotated[int, option("--examples", help="test images [1000]")] = 1000,
    steps: Annotated[int, option("--steps", help="PGD steps [20]")] = 20,
    restarts: Annotated[int, option("--restarts", help="random starts, the worst counts [1]")] = 1,
    constraint: Annotated[
        str | None, option("--constraint", help="linf or l2 [the checkpoint's]")
    ] = None,
    epsilon: Annotated[
        float | None, option("--epsilon", "--eps", help="radius [the checkpoint's]", numeric=True)
    ] = None,
    step_size: Annotated[
        float | None, option("--step-size", help="[radius / 4]", numeric=True)
    ] = None,
    model: Annotated[
        str | None, option("--model", help="architecture of a foreign .pt file")
    ] = None,
    precision: Precision = None,
    seed: Annotated[int, option("--seed", help="of the random starts [0]")] = 0,
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N [auto]")] = "auto",
    json_file: Annotated[
        Path | None, option("--json", help="write the figures there; - prints them alone")
    ] = None,
) -> None:
    """Measure clean accuracy and accuracy under PGD-steps with restarts."""
    from funcrobust.commands import evaluate as measure

    with reporter(silent=str(json_file) == "-") as report:
        measure.evaluate(
            checkpoint, report, dataset=dataset, data_dir=data_dir, examples=examples, steps=steps,
            restarts=restarts, constraint=constraint, epsilon=epsilon, step_size=step_size,
            model=model, precision=precision or "fp32", seed=seed, device=device,
            json_file=json_file,
        )  # fmt: skip


@app.command()
def generate(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="files, run folders or shipped names, side by side")
    ] = None,
    png: Annotated[Path, option("--png", help="the picture to write")] = Path("generated.png"),
    per_class: Annotated[int, option("--per-class", help="images of each class [1]")] = 1,
    steps: Annotated[int, option("--steps", help="steps of psi [20]")] = 20,
    step_size: Annotated[float, option("--step-size", help="[0.5]", numeric=True)] = 0.5,
    eps: Annotated[float, option("--eps", help="radius of the L2 ball [30]", numeric=True)] = 30.0,
    constraint: Annotated[
        str, option("--constraint", help="l2, unconstrained or fourier [l2]")
    ] = "l2",
    model: Annotated[
        str | None, option("--model", help="architecture of a foreign .pt file, or your factory")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    seed: Annotated[int, option("--seed", help="of the start images [0]")] = 0,
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N [auto]")] = "auto",
) -> None:
    """Generate images: class-conditional Gaussian noise, moved toward its class by psi."""
    from funcrobust.commands import generate as generation

    with reporter() as report:
        generation.generate(
            checkpoints or [], report, png=png, per_class=per_class, steps=steps,
            step_size=step_size, eps=eps, constraint=constraint, model=model, dataset=dataset,
            data_dir=data_dir, seed=seed, device=device,
        )  # fmt: skip


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="file, run folder or shipped name")],
    file: Annotated[Path, typer.Argument(help="the .pt to write; or a folder, for robustbench")],
    to: Annotated[
        str, option("--to", help="robustness or robustbench [robustness]")
    ] = "robustness",
    model: Annotated[
        str | None, option("--model", help="architecture of a foreign .pt file, or your factory")
    ] = None,
) -> None:
    """Write a checkpoint in the form that robustness or robustbench loads."""
    from funcrobust.commands.export import export as run

    with reporter() as report:
        run(checkpoint, file, report, to=to, model=model)


@app.command()
def apply(
    task: Annotated[
        str,
        typer.Argument(
            help="generation, inpainting, super-resolution, translation, sketch or painting"
        ),
    ],
    checkpoint: Annotated[
        str | None, typer.Argument(help="the classifier that draws: file, run folder, shipped name")
    ] = None,
    judge: Annotated[
        str | None, option("--judge", help="the classifier that scores [the shipped one], or none")
    ] = None,
    image: Annotated[
        list[Path] | None, option("--image", help="your own image, in place of test images")
    ] = None,
    to: Annotated[str | None, option("--to", help="the class to go toward")] = None,
    examples: Annotated[int | None, option("--examples", help="how many images [100]")] = None,
    steps: Annotated[int | None, option("--steps", help="steps of psi [by task and size]")] = None,
    step_size: Annotated[
        float | None, option("--step-size", help="[by task and size]", numeric=True)
    ] = None,
    eps: Annotated[
        float | None, option("--eps", help="L2 radius [by task and size]", numeric=True)
    ] = None,
    hole: Annotated[
        float | None, option("--hole", help="side of the hole or patch, of the image's [0.5]")
    ] = None,
    scale: Annotated[int | None, option("--scale", help="of super-resolution [4]")] = None,
    feature: Annotated[
        int | None, option("--feature", help="of painting [the most telling for the class]")
    ] = None,
    png: Annotated[Path | None, option("--png", help="the picture to write [TASK.png]")] = None,
    model: Annotated[
        str | None, option("--model", help="architecture of a foreign .pt file, or your factory")
    ] = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    seed: Seed = None,
    device: Device = None,
    json_file: Annotated[Path | None, option("--json", help="write the figures there")] = None,
) -> None:
    """Draw with a robust classifier: six applications of psi, each with a picture and a number."""
    arguments = given(locals(), leave=("task",))
    from funcrobust.commands.apply import run as recipe
    from funcrobust.commands.cure_train import presets

    arguments["image"] = tuple(arguments.get("image", ()))
    with reporter() as report:
        recipe.apply(task, presets.fill(recipe.ApplyOptions(), arguments), report)


@app.command()
def study(
    variants: Annotated[
        list[str] | None,
        typer.Argument(help="of docs/psi-study.md, or run folders and checkpoints [all variants]"),
    ] = None,
    checkpoint: Annotated[
        str | None, option("--checkpoint", help="the classifier to transfer [the shipped one]")
    ] = None,
    judge: Annotated[
        str | None, option("--judge", help="the classifier that scores [the shipped one]")
    ] = None,
    images: Annotated[
        int | None, option("--images", help="made from each kind of start [1000]")
    ] = None,
    examples: Annotated[
        int | None, option("--examples", help="test images of the accuracies [1000]")
    ] = None,
    attack_steps: Annotated[
        int | None, option("--attack-steps", help="of the robust accuracy [20]")
    ] = None,
    updates: Annotated[
        int | None, option("--updates", help="of every transfer [psi-train's default]")
    ] = None,
    out: Annotated[Path | None, option("--out", help="folder of all of it [runs/study]")] = None,
    precision: Precision = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Measure what psi-training does to generated images, variant by variant."""
    arguments = given(locals())
    from funcrobust.commands import study as recipe
    from funcrobust.commands.cure_train import presets

    arguments["variants"] = tuple(arguments.get("variants", ()))
    with reporter() as report:
        recipe.study(presets.fill(recipe.StudyOptions(), arguments), report)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="the dataset to fetch and verify")] = "cifar10",
    data_dir: DataDir = None,
) -> None:
    """Fetch a dataset into the cache, verify it, and say what it holds."""
    from funcrobust.commands import evaluate as measure

    with reporter() as report:
        measure.describe_data(name, data_dir, report)


@app.command()
def demo(
    out: Annotated[Path, option("--out", help="where its run folders go [runs]")] = Path("runs"),
    seed: Annotated[int, option("--seed", help="[0]")] = 0,
) -> None:
    """Everything once: get CIFAR-10, cure-train, psi-train, evaluate, and draw."""
    from funcrobust.commands.demo import demo as run

    with reporter() as report:
        finish(run(out, seed, report))


def reporter(*, silent: bool = False) -> Any:
    """Open what the commands talk through."""
    from funcrobust.report.console import Reporter

    return Reporter.silent() if silent else Reporter()


def finish(status: str) -> None:
    """Turn how a training ended into an exit code: 0, 2 for a loss of NaN, 130 for Ctrl-C."""
    codes = {"diverged": 2, "interrupted": 130}
    if status in codes:
        raise typer.Exit(codes[status])


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit code 2."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except FuncrobustError as error:
        code = fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except typer.TyperException as error:  # a flag that does not exist, a word for a number
        code = fail(f"{error.format_message()} (see --help)")
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> int:
    """Print one line and return exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
