"""The command line: what it reads, what it says, what it refuses; in this process."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
from problems import ROOT, parsed

import funcrobust
from funcrobust import checkpoints, cli, commands, environment
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.presets import PRESETS
from funcrobust.commands.psi_train import PsiTrain
from funcrobust.running.config import to_config
from funcrobust.running.option import options_of, written_number

COMMANDS = tuple(name.replace("_", "-") for _, name, _ in iter_modules(commands.__path__))


def class_of(command):
    """Its options."""
    module = import_module(f"funcrobust.commands.{command.replace('-', '_')}")
    return getattr(module, command.title().replace("-", ""))


def said(capsys, *words):
    """Exit code, standard output and standard error of a command line."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


# --- what it reads ------------------------------------------------------------------------------


def test_the_cure_documents_command():
    words = (
        "cure-train --delta classic --lr-schedule piecewise --lr-max 0.1 --lr-min 0.0 --opt SGD "
        "--lambda 10 --h 3 --epochs 200"
    )
    options = parsed(*words.split())
    assert (options.delta, options.lr_schedule, options.lr_max, options.lr_min) == (
        "classic", "piecewise", 0.1, 0.0,
    )  # fmt: skip
    assert (options.opt, options.lam, options.h, options.epochs) == ("SGD", 10.0, 3.0, 200)
    paper = PRESETS["paper-long"]
    asked = ("lr_schedule", "lr_max", "lam", "epochs")
    assert {k: getattr(options, k) for k in asked} == {k: paper[k] for k in asked}


def test_the_short_commands(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parsed("cure-train", "--h", "3") == CureTrain(h=3)
    assert parsed("psi-train") == PsiTrain()
    assert parsed("cure-train", "--dataset", "digits") == CureTrain.filled({"preset": "digits"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert parsed("cure-train", "--h", "3") == CureTrain.filled({"preset": "fast"})
    assert parsed("cure-train", "--device", "cpu").preset == "cpu"


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("cure-train --epsilon 4/255", "epsilon", 4 / 255),
        ("cure-train --eps 0.02", "epsilon", 0.02), ("psi-train --eps 4/255", "epsilon", 4 / 255),
        ("psi-train --objective drift --radius 12", "radius", 12.0),
        ("psi-train --lr 0.1", "lr_max", 0.1),
        ("cure-train --lr-max 1e-2", "lr_max", 0.01), ("psi-train --untargeted", "targeted", False),
        ("psi-train --targeted", "targeted", True), ("cure-train --compile", "compile", True),
        ("cure-train --no-compile", "compile", False), ("cure-train", "compile", None),
        ("psi-train --steps 5 --derivative truncated:4", "derivative", "truncated:4"),
        ("cure-train --out a/b --h 3", "out", Path("a/b")), ("evaluate run", "checkpoint", "run"),
        ("evaluate --json -", "json_file", Path("-")), ("evaluate", "checkpoint", None),
        ("generate a b --steps 3", "checkpoints", ("a", "b")), ("data svhn", "name", "svhn"),
        ("apply sketch --image a.png --image b.png", "image", (Path("a.png"), Path("b.png"))),
        ("export run file.pt --to robustbench", "to", "robustbench"),
        ("certify --radii 0.5 --radii 1/4", "radii", (0.5, 0.25)),
        ("cure-train --regulariser elle=1000 --regulariser gradient-alignment=1/5",
         "regularisers", {"elle": 1000.0, "gradient-alignment": 0.2}),
        ("study before 'both 6'", "variants", ("before", "'both", "6'")),
    ],
)  # fmt: skip
def test_words_and_what_they_mean(words, field, value):
    assert getattr(parsed(*words.split()), field) == value


# --- what it says -------------------------------------------------------------------------------


def test_no_help_imports_torch():
    """Nor anything that does: an answer within a second."""
    program = (
        "import sys\n"
        "from funcrobust import cli\n"
        f"for words in ([], ['--help'], ['--version'], *([n, '--help'] for n in {COMMANDS})):\n"
        "    try:\n"
        "        cli.main(words)\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, (words, stop.code)\n"
        "    heavy = {'torch', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_are_what_lies_in_the_folder(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0
    assert all(f" {name} " in out for name in COMMANDS)
    assert "Measure accuracy, clean and under attack" in out
    assert said(capsys) == (code, out, ""), "no words at all: the same"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_flag_with_its_words_and_its_default(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = said(capsys, name, "--help")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("│")]
    for option in options_of(class_of(name)).values():
        line = next(s for s in lines if f" {option.flag} " in s)
        assert len(line.split()) > 4, f"{option.flag} says nothing: {line}"
        if isinstance(option.default, float):
            assert f"[default: {written_number(option.default)}]" in line
        for choice in option.choices:
            assert choice in line


@pytest.mark.parametrize("preset", PRESETS)
def test_the_defaults_in_the_help_are_the_presets(preset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = said(capsys, "cure-train", "--preset", preset, "--help")
    assert f"defaults shown are those of --preset {preset}." in out
    options = CureTrain.filled({"preset": preset})
    fields = options_of(CureTrain)
    for name in PRESETS[preset]:
        value = getattr(options, name)
        text = written_number(value) if fields[name].kind is float else str(value)
        if isinstance(value, bool):
            text = fields[name].flag if value else fields[name].flag.replace("--", "--no-", 1)
        line = next(s for s in out.splitlines() if s.startswith(f"│ {fields[name].flag} "))
        assert f"[default: {text}]" in line


def test_help_of_the_preset_that_would_be_taken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for words, preset in (
        (("--dataset", "digits"), "digits"), (("--device", "cuda"), "fast"), ((), "cpu"),
        (("--preset=strong", "--dataset", "digits"), "strong"),
    ):  # fmt: skip
        _, out, _ = said(capsys, "cure-train", *words, "--help")
        assert f"those of --preset {preset}." in out


def test_version(capsys, monkeypatch):
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{funcrobust.__version__}"' in project
    assert said(capsys, "--version") == (0, f"{funcrobust.__version__}\n", "")

    def absent(_):
        raise environment.metadata.PackageNotFoundError

    monkeypatch.setattr(environment.metadata, "version", absent)
    assert f'version = "{funcrobust.__version__}"' in project, "from a clone that is not installed"


def test_the_citation_and_the_changelog_know_the_version():
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {funcrobust.__version__}\n" in cited
    log = (ROOT / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n" in log or f"\n## {funcrobust.__version__} " in log


def test_as_a_module():
    command = [sys.executable, "-m", "funcrobust", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == funcrobust.__version__


def test_a_help_that_nobody_reads_is_a_broken_pipe():
    """As of any program: 141, without a word, where the reader is gone before the first line."""
    ours, theirs = os.pipe()
    os.close(ours)
    code = subprocess.run(
        [sys.executable, "-m", "funcrobust", "evaluate", "--help"], stdout=theirs,
        stderr=subprocess.PIPE, cwd=ROOT, check=False, text=True,
    )  # fmt: skip
    os.close(theirs)
    assert (code.returncode, code.stderr) == (141, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_flags_and_choices(shell):
    script = cli.program([cli.COMPLETION]).generate_completion(shell=shell)
    for word in ("cure-train", "psi-train", "regulariser", "untargeted", "piecewise", "n-fgsm"):
        assert word in script


# --- what it refuses ----------------------------------------------------------------------------

DIGITS = "cure-train --dataset digits "
BAD = [
    ("cure-train --dataset cifar11", "(did you mean 'cifar10'?)"),
    (DIGITS + "--compile --no-capture", "--capture does nothing here: --compile takes its place"),
    (DIGITS + "--capture", "--capture is of updates on CUDA, and this training is on cpu"),
    (DIGITS + "--preset fsat", "unknown --preset 'fsat' (did you mean 'fast'?)"),
    (DIGITS + "--preset auto", "unknown --preset 'auto'"),
    (DIGITS + "--model preact-tinny", "preact-tiny"),
    (DIGITS + "--model no.such:thing", "no"),
    (DIGITS + "--device tpu", "unknown device 'tpu': use auto, cpu, cuda or cuda:N"),
    (DIGITS + "--epsilon -0.1", "--epsilon must be a finite number >= 0, got -0.1"),
    (DIGITS + "--epsilon -1/255", "--epsilon must be"),
    (DIGITS + "--epsilon 1/0", "--epsilon must be a finite number >= 0, got '1/0'"),
    (DIGITS + "--epsilon 8", "8/255"),
    (DIGITS + "--batch-size 100000", "batch"),
    (DIGITS + "--data-dir .", "--data-dir"),
    ("cure-train --h nan", "--h must be a finite number > 0, got nan"),
    ("cure-train --lambda -1", "--lambda must be"),
    ("cure-train --epochs 0", "--epochs must be a whole number >= 1, got 0"),
    ("cure-train --epochs many", "--epochs must be a whole number >= 1, got 'many'"),
    ("cure-train --epochs 3.5", "--epochs must be a whole number"),
    ("cure-train --epochs", "--epochs requires an argument"),
    ("cure-train --seed 9223372036854775808", "--seed must be"),
    ("cure-train --seed -1", "--seed must be"),
    ("cure-train --evaluate-examples -5", "--evaluate-examples must be a whole number >= 1"),
    ("cure-train --ema 1", "--ema must be a finite number >= 0 and < 1"),
    ("cure-train --compile=3", "--compile"),
    ("cure-train --h 1 --h 2", "--h is there twice"),
    ("cure-train stray", "no place for stray"),
    # A choice or a flag that is nearly one, in other capitals too.
    ("cure-train --delta sideways", "unknown --delta 'sideways': choose from classic, random"),
    ("cure-train --delta Classic", "unknown --delta 'Classic' (did you mean 'classic'?)"),
    ("cure-train --units Pixel", "(did you mean 'pixel'?)"),
    ("cure-train --delta-init Zero", "(did you mean 'zero'?)"),
    ("cure-train --attack-statistics Batch", "(did you mean 'batch'?)"),
    ("cure-train --h-schedule Linear", "(did you mean 'linear'?)"),
    ("cure-train --attack N-FGSM", "(did you mean 'n-fgsm'?)"),
    ("cure-train --opt sgd", "(did you mean 'SGD'?)"),
    ("cure-train --opt lion", "choose from SGD, Adam"),
    ("cure-train --lr-schedule zigzag", "unknown --lr-schedule 'zigzag'"),
    ("cure-train --Epochs 3", "--Epochs. Did you mean --epochs?"),
    ("cure-train --gradalign 1", "unknown option: --gradalign"),
    ("cure-train --regulariser gradalign=1", "(did you mean 'gradient-alignment'?)"),
    ("cure-train --regulariser elle", "--regulariser must be NAME=VALUE"),
    ("cure-train --regulariser elle=-1", "--regulariser must be"),
    ("psi-train --constraint linf", "choose from l2, unconstrained, fourier"),
    ("psi-train --distance cosine", "unknown --distance 'cosine'"),
    ("psi-train --derivative sideways", "unknown --derivative 'sideways': choose from adjoint"),
    ("psi-train --derivative truncated:0", "unknown --derivative"),
    ("psi-train --backward adjoint", "unknown option: --backward"),
    ("apply sketchy", "unknown TASK 'sketchy' (did you mean 'sketch'?)"),
    ("evalute", "Did you mean \"evaluate\"?"),
    # Values that would do nothing.
    ("cure-train --attack pgd --noise 2", "--noise does nothing here: it goes with --attack n-"),
    ("cure-train --attack-steps 5", "does nothing here: it goes with --attack apgd-k or pgd-k"),
    ("cure-train --attack pgd --attack-steps 0", "--attack-steps must be"),
    ("cure-train --quantile 0.1", "--quantile does nothing here: it goes with --attack zerograd"),
    ("cure-train --attack none --trades 1", "--trades does nothing here: it needs --attack"),
    ("cure-train --attack none --alpha 0.1", "--alpha does nothing here"),
    ("cure-train --attack none --delta fgsm", "look toward x̂, which --attack none has not"),
    ("cure-train --attack none --hat 1 --helper net", "look toward x̂, which --attack none has"),
    ("cure-train --noise 3 --delta-init zero", "--noise does nothing here: it needs --delta-init"),
    ("cure-train --helper net", "--helper does nothing here: it needs --hat"),
    ("cure-train --hat 1", "--hat needs --helper"),
    ("cure-train --lambda 0 --h 3", "--h does nothing here: it needs the curvature term"),
    ("cure-train --delta fgsm --h 3", "--h does nothing here: it needs --delta classic or random"),
    ("cure-train --delta none --lambda 1", "--lambda does nothing here: it needs --delta"),
    ("cure-train --lambda 0 --cure-every 2", "it needs a regulariser"),
    ("cure-train --lambda 0 --delta random", "--delta does nothing here: it needs --lambda"),
    (DIGITS + "--lambda 0 --delta classic", "--delta does nothing here: it needs --lambda"),
    ("cure-train --regulariser elle=0", "--regulariser must be NAME=VALUE, each a finite number >"),
    ("cure-train --regulariser elle=1 --regulariser elle=2", "--regulariser elle is there twice"),
    ("cure-train --opt Adam --momentum 0.9", "--momentum does nothing here: it needs --opt SGD"),
    ("cure-train --attack n-fgsm --constraint l2", "n-fgsm is an L-infinity attack"),
    ("cure-train --attack pgd --constraint l2", "is a radius in linf: give --epsilon for l2"),
    ("cure-train --trades 1 --delta-init zero", "--trades needs --delta-init random"),
    ("psi-train --start-noise 0.3", "--start-noise does nothing here: it needs --start gaussian"),
    ("psi-train --starts-rate 3", "--starts-rate does nothing here: it needs --learn-starts"),
    ("psi-train --objective drift --learn-starts 4 --start own", "--start does nothing here: --le"),
    ("psi-train --derivative truncated:7", "truncates nothing of --steps 1"),
    ("psi-train --objective drift --derivative truncated:5", "truncates nothing of --steps 5"),
    ("psi-train --restore 0 --derivative implicit", "it needs --restore or --drift-weight or --e"),
    ("psi-train --anchor 0 --anchor-steps 2", "--anchor-steps does nothing here"),
    ("psi-train --anchor-loss clean --anchor-steps 2", "--anchor-steps does nothing here"),
    ("psi-train --constraint fourier --radius 2", "--radius does nothing here"),
    ("cure-train --name mine --stream", "--stream does nothing here: it goes with data of your"),
    ("psi-train --name mine --image-size 32", "--image-size does nothing here"),
    ("data cifar10 --max-data-gib 3", "--max-data-gib does nothing here"),
    ("apply generation --hole 0.3", "--hole does nothing here: it goes with TASK inpainting"),
    ("apply sketch --image a.png --examples 3", "--examples does nothing here: --image takes"),
    ("generate --constraint unconstrained --radius 3", "--radius does nothing here"),
    ("study before published --repeats 5", "--repeats does nothing here: it needs a variant that"),
    ("study before --updates 3", "--updates does nothing here: it needs a variant that is made by"),
    ("study before --judge none", "--judge none: a study needs somebody to score"),
    ("evaluate --autoattack --steps 5", "--steps does nothing here: --autoattack takes its place"),
    ("evaluate --attack square --restarts 3", "here: --attack square takes no random starts"),
    ("evaluate --attack n-fgsm --constraint l2 --epsilon 1", "n-fgsm is an L-infinity attack: use"),
    ("runs --out nosuch", "no such file or folder: nosuch"),
    # What a resumed run would not heed.
    ("cure-train --resume nowhere", "nowhere is not a run folder"),
    ("cure-train --resume nowhere --h 3 --epochs 9", "leave --h, --epochs out"),
    ("psi-train --resume nowhere --out x", "leave --out out"),
    # The rest.
    ("psi-train --steps 0", "--steps must be a whole number >= 1, got 0"),
    ("psi-train --steps -3", "--steps must be"),
    ("psi-train --step-size inf", "--step-size must be"),
    ("psi-train --anchor -1", "--anchor must be"),
    ("psi-train --objective drift --label 12", "below 10, got '12'"),
    ("psi-train --checkpoint nowhere.safetensors", "nowhere"),
    ("evaluate nowhere", "nowhere"),
    ("evaluate --steps 0", "--steps must be"),
    ("evaluate --restarts 0", "--restarts must be"),
    ("generate --png picture.jpg", "--png must name a .png file"),
    ("certify nowhere", "nowhere"),
    ("certify --sigma 0", "--sigma must be a finite number > 0"),
    ("certify --alpha 1", "--alpha must be a finite number > 0 and < 1"),
    ("certify --samples 0", "--samples must be"),
    ("certify --samples 9", "9 samples can certify nothing at alpha = 0.001"),
    ("certify --radii -1", "--radii must be several, each a finite number >= 0"),
    ("certify --radii 0.25 --radii 1/4", "--radii 0.25 is there twice: say it once"),
    ("export run", "FILE"),
    ("apply", "TASK"),
    ("data cifar11", "cifar10"),
    ("data digits --data-dir .", "--data-dir"),
    ("no-such-command", "no-such-command"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, error = said(capsys, *words.split())
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert message in error
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", ""), "CHECKPOINT must be a text that is not empty, got ''"),
        (("cure-train", "--name", ""), "--name must be a text that is not empty"),
        (("cure-train", "--epsilon="), "--epsilon must be"), (("",), 'unknown command ""'),
    ],
)  # fmt: skip
def test_an_empty_word_is_no_value(words, message, capsys):
    code, _, error = said(capsys, *words)
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("diverged", 2), ("interrupted", 130), ("collapsed", 0)]
)
def test_how_a_training_ended_is_the_exit_code(status, code, monkeypatch, capsys):
    class Result:
        pass

    Result.status = status
    monkeypatch.setattr("funcrobust.commands.cure_train.run", lambda *_: Result())
    assert said(capsys, "cure-train", "--preset", "digits")[0] == code


def test_an_interrupt_before_there_is_anything_to_save(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("funcrobust.commands.evaluate.run", interrupted)
    assert said(capsys, "evaluate") == (130, "", "interrupted\n")


def test_a_new_command_is_one_file(tmp_path, monkeypatch, capsys):
    """A file in commands/: its name, its summary, its options and what it does."""
    (tmp_path / "greet_all.py").write_text(
        '"""Greet whoever is named."""\n'
        "from dataclasses import dataclass, field\n"
        "from funcrobust.running.marks import Count\n"
        "from funcrobust.running.options import Options\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class GreetAll(Options):\n"
        '    """Greeting."""\n'
        "    names: tuple[str, ...] = field(default=('you',), kw_only=False)\n"
        '    """Whom to greet."""\n'
        "    times: Count = 1\n"
        '    """How often."""\n'
        "def run(options, reporter):\n"
        "    for name in options.names * options.times:\n"
        "        reporter.say(f'hello {name}')\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert "Greet whoever is named." in said(capsys, "--help")[1]
    assert "How often. [default: 1]" in said(capsys, "greet-all", "--help")[1]
    assert said(capsys, "greet-all", "a", "b", "--times", "2")[1] == "hello a\nhello b\n" * 2
    assert "--times must be" in said(capsys, "greet-all", "--times", "0")[2]


def test_to_config_is_all_but_where_to_resume():
    assert set(to_config(PsiTrain())) == set(options_of(PsiTrain)) - {"resume", "quiet"}


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "docs/recipes.md", "docs/psi-study.md", "docs/index.md",
        *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/[ct]*/*.md"))),
    ],
)  # fmt: skip
def test_every_flag_in_the_documents_is_one(name):
    known = {"--help", "--version", cli.COMPLETION} | {
        flag
        for command in COMMANDS
        for option in options_of(class_of(command)).values()
        for flag in (*option.flags, option.off)
    }
    text = re.sub(r"torchrun --[^`\n]*cli\.py", "cli.py", (ROOT / name).read_text())  # its own
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert said <= known, said - known


@pytest.mark.parametrize("name", checkpoints.shipped())
def test_the_commands_on_the_shipped_cards_can_still_be_said(name):
    _, card = checkpoints.load(name)
    words = shlex.split(card.command)[2:]
    said = words[words.index("--precision") + 1] if "--precision" in words else "bf16"  # a preset's
    assert parsed(*words).precision == said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        torch.OutOfMemoryError("HIP's words"), RuntimeError("CUDA error: out of memory"),
    ],
)  # fmt: skip
def test_the_end_of_memory_is_one_line(monkeypatch, capsys, error):
    def ends(options, reporter):
        raise error

    monkeypatch.setattr("funcrobust.commands.demo.run", ends)
    code, _, err = said(capsys, "demo")
    assert (code, err.count("\n")) == (2, 1)
    assert "out of memory" in err


def test_another_error_is_not_taken_for_it(monkeypatch):
    def breaks(options, reporter):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("funcrobust.commands.demo.run", breaks)
    with pytest.raises(RuntimeError, match="of ours"):
        cli.main(["demo"])


@pytest.mark.parametrize(
    "words", ["--trades 3 --no-trades", "--no-trades --trades 3", "--h 3 --h 4"]
)
def test_a_flag_is_said_once(capsys, words):
    code, _, err = said(capsys, "cure-train", *words.split())
    assert (code, err.count("\n")) == (2, 1)
    assert "twice, or beside its opposite" in err


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("cure-train --lr 1e300", "1e+30"), ("certify --sigma 1e300", "1e+30"),
        ("evaluate --restarts 9223372036854775807", "<= 1000000"),
    ],
)  # fmt: skip
def test_numbers_whose_products_are_none_are_refused(capsys, words, most):
    code, _, err = said(capsys, *words.split())
    assert (code, err.count("\n")) == (2, 1)
    assert most in err
