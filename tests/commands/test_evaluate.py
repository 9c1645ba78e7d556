"""``evaluate`` on the digits: figures, checks, a verdict, and a file that it goes on from."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import parsed, run_cli
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import funcrobust as fr
from funcrobust import checkpoints, data
from funcrobust.commands import evaluate
from funcrobust.commands.evaluate import attacking, recipe
from funcrobust.commands.evaluate.options import OWN
from funcrobust.core import evaluation
from funcrobust.core.evaluation.autoattack import STANDARD
from funcrobust.core.network.functional import autocast
from funcrobust.report.console import Reporter
from funcrobust.running.catalogue import functions
from funcrobust.running.l2_square import l2_square
from funcrobust.running.places import AUTO


def figures(digits_run, **options):
    given = {"checkpoint": str(digits_run[0]), "examples": 40, "checks": False, "steps": 3}
    with Reporter.silent() as reporter:
        return evaluate.run(evaluate.Evaluate(**{**given, **options}), reporter)


def test_the_default_judges_and_names_what_it_did_not_try(digits_run):
    found = figures(digits_run, checks=True, steps=None, epsilon=0.1)
    assert found["verdict"] in ("upper bound", "suspicious")
    assert len(found["checks"]) == len(recipe.CHECKS)
    assert found["not_tried"] == ["AutoAttack (--autoattack)"]
    assert not [c for c in found["checks"] if c["passed"] is False and c["severity"] == "invalid"]
    assert found["attacks"] == ["sharp PGD-20-3"]
    low, high = found["robust_interval"]
    assert 0 <= low <= found["robust"] <= high <= 1
    assert found["robust"] <= found["clean"]


@pytest.mark.parametrize("attack", evaluate.options.attack_names())
def test_every_attack(digits_run, attack):
    steps = 3 if attack in evaluate.options.WITH_STEPS else None
    found = figures(digits_run, attack=attack, steps=steps, epsilon=0.2)
    assert found["robust"] < found["clean"]
    assert found["attacks"] == [attacking.title(evaluate.Evaluate(attack=attack, steps=steps))]


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ({"attack": "pgd", "steps": 5}, 0.5),
        ({"attack": "pgd", "steps": 5, "step_size": 0.07}, 0.14),
        ({"attack": "rs-fgsm", "steps": None}, None),
        ({"attack": "rs-fgsm", "steps": None, "step_size": 0.07}, 0.14),
        ({"attack": "apgd-ce"}, None),
        ({"autoattack": True, "steps": None}, None),
    ],
)
def test_the_step_size_on_record_is_the_attacks_and_the_pages_the_curves(
    digits_run, tmp_path, asked, share
):
    path = tmp_path / "page.html"
    found = figures(digits_run, epsilon=0.5, examples=4, page=path, **asked)
    assert found["step_size"] == (None if share is None else pytest.approx(share * 0.5))
    curves = asked.get("step_size", 0.125)  # a quarter of the radius, whatever the attack's is
    assert f"over steps: each of {curves}." in path.read_text()


def test_autoattack_runs_the_four_in_turn(digits_run):
    found = figures(digits_run, autoattack=True, steps=None, epsilon=0.3, examples=20)
    left = [row["accuracy"] for row in found["after"]]
    assert [row["attack"] for row in found["after"]] == list(STANDARD)
    assert left == sorted(left, reverse=True)
    assert found["robust"] == left[-1] <= figures(digits_run, epsilon=0.3, examples=20)["robust"]
    assert found["not_tried"] == []


def test_a_search_in_half_precision_is_counted_in_single(digits_run, monkeypatch):
    searched = []

    def noted(predict, dtype):
        searched.append(dtype)
        return autocast(predict, dtype)

    monkeypatch.setattr(attacking, "autocast", noted)
    found = figures(digits_run, search="bf16", steps=10, epsilon=0.1, checks=True)
    assert set(searched) == {torch.bfloat16}
    searched.clear()
    assert (found["search"], found["dtype"]) == ("bf16", "float32")
    plain = figures(digits_run, steps=10, epsilon=0.1)
    assert plain["search"] is None
    assert not searched
    assert abs(found["robust"] - plain["robust"]) <= 0.1
    assert not [c for c in found["checks"] if c["passed"] is False and c["severity"] == "invalid"]
    same = figures(digits_run, search="auto", steps=10, epsilon=0.1, device="cpu")
    assert abs(same["robust"] - plain["robust"]) <= 0.1
    for precision in ("fp32", "bf16"):
        with pytest.raises(fr.FuncrobustError, match=f"--search {precision} does nothing here"):
            evaluate.Evaluate(search=precision, precision=precision)


def test_l2_square_from_pyautoattack_fools_and_stays_in_the_ball(digits_run):
    """And leaves global random state as it was, and is a function of the seed."""
    pytest.importorskip("pyautoattack")
    ball = fr.l2(1.0)
    network, _ = checkpoints.load(str(digits_run[0]))
    model = fr.functionalize(network)
    digits = data.load("digits")
    x, y = data.as_float(digits.x_test[:30]), digits.y_test[:30]
    before = torch.random.get_rng_state()
    first, second = (
        evaluation.attack_all(
            model.predict, model.params, x, y, {"it": l2_square(ball, queries=50)}, seed=3
        )
        for _ in range(2)
    )
    assert first.robust.sum() < first.clean.sum()
    assert torch.equal(first.images, second.images)
    assert evaluation.inside(ball, first.images, x, slack=1e-5).all()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_random_part_of_the_test_images_by_the_seed(digits_run, tmp_path):
    held = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(held)}.safetensors"
        figures(digits_run, seed=seed, save=path)
        held.append(load_file(path)["numbers"])
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])
    assert held[0].tolist() != list(range(40))


def test_auto_is_kept_as_what_it_stood_for(digits_run, tmp_path, monkeypatch):
    """A file that was begun in one precision is not taken up in another."""
    path = tmp_path / "x.safetensors"
    machine = "funcrobust.running.machine.torch.cpu._is_"
    for has in ("avx512_bf16_supported", "amx_tile_supported"):
        monkeypatch.setattr(machine + has, lambda: False)
    auto = {"precision": "auto", "device": "cpu", "examples": 10, "save": path}
    assert figures(digits_run, **auto)["precision"] == "fp32"
    figures(digits_run, **auto | {"precision": "fp32"})
    monkeypatch.setattr(machine + "amx_tile_supported", lambda: True)
    with pytest.raises(fr.FuncrobustError, match=r"another evaluation \(other precision\)"):
        figures(digits_run, **auto)
    search = {"search": "auto", "device": "cpu", "examples": 10}
    assert figures(digits_run, **search)["search"] == "bf16"


def test_no_network_is_loaded_for_a_transfer_but_one_that_knows_the_images(digits_run, monkeypatch):
    asked, usual = [], recipe.load_classifier

    def noted(name, *more):
        asked.append(name)
        return usual(name, *more)

    monkeypatch.setattr(recipe, "load_classifier", noted)
    with Reporter.silent() as reporter:
        for name, loaded in ((str(digits_run[0]), []), ("cifar10-linf-tiny", [recipe.USUAL])):
            module, card = checkpoints.load(name)
            own = recipe.Classifier(name, card, module, fr.functionalize(module))
            found = recipe._surrogate(own, torch.device("cpu"), reporter)
            assert (asked, found is None) == (loaded, not loaded)


def test_images_are_looked_at_in_parts_with_a_bar(digits_run, tracks, monkeypatch):
    whole = figures(digits_run)
    assert tracks[:2] == [("clean", 40), ("attack", 40)]
    monkeypatch.setattr(recipe, "LOOKED", 7)
    assert {**figures(digits_run, batch_size=7), "seconds": 0} == {**whole, "seconds": 0}


NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 32 * 32, 10))
"""


@pytest.mark.parametrize("command", ["evaluate", "minimum-norm", "certify", "corruptions"])
def test_a_network_that_cannot_take_the_images_is_one_line(command, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    x, y = np.zeros((20, 16, 16, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "small.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    made = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 32 * 32, 10))
    torch.save(made.state_dict(), tmp_path / "net.pt")
    words = (command, "net.pt", "--model", "net:make", "--dataset", "small.npz")
    more = ("--attack", "fmn-linf") if command == "minimum-norm" else ()
    done = run_cli(*words, *more, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the network cannot take small.npz's images: ")
    assert "mat1 and mat2 shapes cannot be multiplied" in line


def test_what_is_saved_fools_the_network(digits_run, tmp_path):
    path = tmp_path / "fooling.safetensors"
    found = figures(digits_run, epsilon=0.2, save=path)
    held = load_file(path)
    fell = held["fell_to"]
    assert float((fell < 0).double().mean()) == pytest.approx(found["robust"])
    network, _ = checkpoints.load(str(digits_run[0]))
    fooled = fell > 0
    assert fooled.any()
    seen = network.eval()(held["images"]).argmax(1)
    assert torch.equal(seen, held["predicted"][fooled])
    assert (seen != held["labels"][fooled]).all()
    clean = data.as_float(data.load("digits").x_test[held["numbers"][fooled]])
    assert (held["images"] - clean).abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize("size", [7, 100])
def test_the_figures_are_the_same_however_many_are_attacked_at_a_time(
    digits_run, monkeypatch, size
):
    sizes = []
    usual = recipe.attack_the_standing

    def spied(*args, **named):
        sizes.append(args[6].batch_size)
        return usual(*args, **named)

    monkeypatch.setattr(recipe, "attack_the_standing", spied)
    monkeypatch.setattr(recipe, "CHUNK", 10)
    known = figures(digits_run, epsilon=0.15)
    found = figures(digits_run, epsilon=0.15, batch_size=size)
    assert [found[k] for k in ("clean", "robust")] == [known[k] for k in ("clean", "robust")]
    assert set(sizes) == {250, size}


def test_an_interrupted_evaluation_goes_on_to_the_same_figures(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CHUNK", 10)
    options = {"attack": "apgd-ce", "epsilon": 0.15, "batch_size": 10}
    whole = figures(digits_run, **options, save=tmp_path / "whole.safetensors")
    calls = []
    usual = recipe.attack_the_standing

    def third_fails(*args, **named):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(*args, **named)

    monkeypatch.setattr(recipe, "attack_the_standing", third_fails)
    path = tmp_path / "part.safetensors"
    with pytest.raises(KeyboardInterrupt):
        figures(digits_run, **options, save=path)
    assert (load_file(path)["stage"] == 1).sum() == 20
    found = figures(digits_run, **options, save=path)
    assert len(calls) == 3 + 2, "what was done is not done again"
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    one, other = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("line", range(1, 7))
def test_a_signal_at_any_line_leaves_a_file_that_is_gone_on_from(
    digits_run, tmp_path, monkeypatch, line
):
    """Ctrl-C at each of the lines after an attack, where what it found is written down."""
    monkeypatch.setattr(recipe, "CHUNK", 20)
    options = {"attack": "apgd-ce", "epsilon": 0.15, "batch_size": 20, "page": None}
    path, usual, left = tmp_path / "part.safetensors", recipe.attack_the_standing, [line]

    def stopping(*_):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return stopping

    def traced(*args, **named):
        found = usual(*args, **named)
        sys._getframe(1).f_trace = stopping
        sys.settrace(lambda *_: None)
        return found

    tracing = sys.gettrace()
    monkeypatch.setattr(recipe, "attack_the_standing", traced)
    try:
        with pytest.raises(KeyboardInterrupt):
            figures(digits_run, **options, save=path)
    finally:
        sys.settrace(tracing)
    monkeypatch.undo()
    held = load_file(path)
    assert (held["fell_to"] <= held["stage"]).all()
    found = figures(digits_run, **options, save=path)
    assert {**found, "seconds": 0} == {**figures(digits_run, **options), "seconds": 0}


@pytest.mark.parametrize("attack", evaluate.options.TARGETED)
@pytest.mark.parametrize("target", ["3", "random", "least-likely"])
def test_targeted(digits_run, tmp_path, attack, target):
    path = tmp_path / "aimed.safetensors"
    found = figures(digits_run, attack=attack, target=target, steps=5, epsilon=0.3, save=path)
    held = load_file(path)
    aimed, fell = held["labels"], held["fell_to"]
    digits = data.load("digits")
    y = digits.y_test[held["numbers"]]
    assert (aimed != y).all(), "images of the target are left out"
    assert found["examples"] == len(y) <= 40
    assert (len(y) == 40) == (target != "3")
    assert found["success"] == pytest.approx(float((fell >= 0).double().mean()))
    assert found["already"] == pytest.approx(float((fell == 0).double().mean()))
    assert found["already"] < found["success"], "an attack finds some"
    network, _ = checkpoints.load(str(digits_run[0]))
    reached = fell > 0
    assert torch.equal(network.eval()(held["images"]).argmax(1), aimed[reached])
    clean = data.as_float(digits.x_test[held["numbers"]])
    assert (held["images"] - clean[reached]).abs().max() <= 0.3 + 1e-6
    assert found["clean"] == pytest.approx(float((network(clean).argmax(1) == y).double().mean()))
    low, high = found["success_interval"]
    assert low <= found["success"] <= high
    assert "robust" not in found


def test_targeted_with_checks_says_what_the_figure_is(digits_run, capsys):
    options = {"checkpoint": str(digits_run[0]), "examples": 40, "steps": 5, "target": "random"}
    with Reporter() as reporter:
        found = evaluate.run(evaluate.Evaluate(**options, epsilon=0.1), reporter)
    said = capsys.readouterr().out
    assert "target random" in said
    assert "accuracy, clean" in said
    assert "the target, by sharp PGD-5-3" in said
    assert not [c for c in found["checks"] if c["passed"] is False and c["severity"] == "invalid"]
    skipped = [c for c in found["checks"] if c["name"] == "Square finds nothing more"]
    assert [c["passed"] for c in skipped] == [None]
    assert found["verdict"] in ("upper bound", "suspicious")
    assert ("the success rate is a lower bound" in said) == (found["verdict"] == "upper bound")


def test_one_screen_with_the_evaluations_that_say_more(digits_run, monkeypatch, capsys, tmp_path):
    """80 by 24 with the prompt; the commands named are this one, with more of it."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(digits_run[0])
    options = evaluate.Evaluate(checkpoint="run", examples=40, steps=5, epsilon=0.1, page=None)
    with Reporter() as reporter:
        found = evaluate.run(options, reporter)
    lines = capsys.readouterr().out.splitlines()
    said = "\n".join(line for line in lines if "% · " not in line)  # a slow machine tells how far
    passed = sum(check["passed"] is True for check in found["checks"])
    assert f"{passed} checks passed: " in said
    for check in found["checks"]:
        assert check["name"] in said
        assert check["figure"] in said
    folded = sum(len(textwrap.wrap(line, 78)) or 1 for line in said.splitlines())
    assert folded <= 23
    lines = [line for line in said.splitlines() if line.startswith("  funcrobust ")]
    named = [parsed(*shlex.split(line)[1:]) for line in lines]
    assert named == [
        replace(options, page=AUTO, autoattack=True, steps=None),
        replace(options, page=AUTO, examples=found["test_images"], save=Path("all.safetensors")),
    ]


def test_files_that_are_not_of_this_evaluation(digits_run, tmp_path):
    path = tmp_path / "kept.safetensors"
    figures(digits_run, save=path)
    with pytest.raises(
        fr.FuncrobustError, match=r"another evaluation \(other epsilon, step_size\)"
    ):
        figures(digits_run, save=path, epsilon=0.123)
    with pytest.raises(fr.FuncrobustError, match="another evaluation"):
        figures(digits_run, save=path, examples=41)
    for junk in (b"", b"\x08\0\0\0\0\0\0\0{}      ", path.read_bytes()[:200], b"no"):
        path.write_bytes(junk)
        with pytest.raises(fr.FuncrobustError, match="no evaluation that was saved"):
            figures(digits_run, save=path)
        assert path.read_bytes() == junk, "nothing is lost"


def class_beyond_the_last(held):
    held["predicted"][0] = 10**12


def class_after_the_last(held):
    held["predicted"][-1] = 10


def fallen_before_any_attack(held):
    held["stage"][:] = 0


def all_misclassified(held):
    held["fell_to"][:], held["images"] = 0, held["images"][:0].clone()


def all_classified_right(held):
    held["fell_to"][held["fell_to"] == 0] = -1


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (class_beyond_the_last, "does not hold an evaluation of these images"),
        (class_after_the_last, "does not hold an evaluation of these images"),
        (fallen_before_any_attack, "does not hold an evaluation of these images"),
    ],
)
def test_a_file_that_contradicts_itself(digits_run, tmp_path, lie, said):
    path = tmp_path / "kept.safetensors"
    figures(digits_run, save=path, epsilon=0.15, page=None)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    held = load_file(path)
    assert set(held["fell_to"].tolist()) == {-1, 0, 1}
    lie(held)
    save_file(held, path, metadata)
    kept = path.read_bytes()
    with pytest.raises(fr.FuncrobustError, match=said) as caught:
        figures(digits_run, save=path, epsilon=0.15)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == kept, "nothing is lost"


@pytest.mark.parametrize("lie", [all_misclassified, all_classified_right])
def test_who_was_right_without_an_attack_is_seen_anew(digits_run, tmp_path, lie):
    """A rounding can tell on another device; and a file can say anything."""
    path = tmp_path / "kept.safetensors"
    honest = figures(digits_run, save=path, epsilon=0.15, page=None)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    held = load_file(path)
    lie(held)
    save_file(held, path, metadata)
    again = figures(digits_run, save=path, epsilon=0.15, page=None)
    assert (again["clean"], again["robust"]) == (honest["clean"], honest["robust"])
    kept = load_file(path)
    assert set(kept["fell_to"].tolist()) == {-1, 0, 1}


def test_another_network_under_the_same_name_is_another_evaluation(digits_run, tmp_path):
    path, own = tmp_path / "kept.safetensors", tmp_path / "own"
    module, card = checkpoints.load(str(digits_run[0]))
    own.mkdir()
    checkpoints.save(own, module.state_dict(), card)
    first = figures(digits_run, checkpoint=str(own), save=path, page=None)
    assert (
        figures(digits_run, checkpoint=str(own), save=path, page=None)["robust"] == first["robust"]
    )
    other = {name: torch.zeros_like(t) for name, t in module.state_dict().items()}
    checkpoints.save(own, other, card)
    with pytest.raises(fr.FuncrobustError, match=r"another evaluation \(other sha256\)"):
        figures(digits_run, checkpoint=str(own), save=path, page=None)
    with safe_open(path, "pt") as file:
        held = json.loads(file.metadata()["evaluation"])
    del held["sha256"]  # as of a version before
    save_file(load_file(path), path, {"evaluation": json.dumps(held)})
    with pytest.raises(fr.FuncrobustError, match=r"another evaluation \(other sha256\)"):
        figures(digits_run, checkpoint=str(own), save=path, page=None)


NOISY = """
import torch
from torch import nn

from funcrobust import models


class Noisy(nn.Module):
    normalized = True

    def __init__(self):
        super().__init__()
        self.net = models.build(MODEL, in_channels=1)

    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))
"""


def test_a_random_network_is_attacked_as_the_mean_of_its_draws(digits_run, tmp_path, monkeypatch):
    module, card = checkpoints.load(str(digits_run[0]))
    (tmp_path / "noisy_net.py").write_text(NOISY.replace("MODEL", repr(card.model)))
    monkeypatch.chdir(tmp_path)
    tensors = {f"net.{name}": tensor for name, tensor in module.state_dict().items()}
    own = {
        "checkpoint": "noisy.safetensors", "model": "noisy_net:Noisy", "epsilon": 0.2, "page": None,
    }  # fmt: skip
    checkpoints.save(Path("noisy.safetensors"), tensors, replace(card, model="noisy_net:Noisy"))

    random = figures(digits_run, checks=True, examples=20, **own)
    assert random["verdict"] == "invalid"
    assert "same logits twice" in random["because"][0]

    mean = figures(digits_run, checks=True, draws=4, examples=20, **own)
    assert not [c for c in mean["checks"] if c["passed"] is False and c["severity"] == "invalid"]
    assert mean["draws"] == 4
    assert mean["robust"] < mean["clean"]
    assert figures(digits_run, draws=4, examples=20, **own)["robust"] == mean["robust"]
    with pytest.raises(fr.FuncrobustError, match="--draws: this network draws nothing"):
        figures(digits_run, draws=4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--autoattack", "--attack", "pgd"), "--attack does nothing here: --autoattack"),
        (("--autoattack", "--steps", "5"), "--steps does nothing here"),
        (("--attack", "square", "--restarts", "3"), "--attack square takes no random starts"),
        (("--attack", "square", "--constraint", "l2", "--epsilon", "0.5"), "linf"),
        (("--constraint", "l2"), "is a radius in linf: give --epsilon for l2"),
        (("--attack", "apgd-ce", "--step-size", "0.1"), "--step-size does nothing here"),
        (("--attack", "square", "--target", "3"), "--target does nothing here: it needs --attack"),
        (("--autoattack", "--target", "3"), "--target does nothing here: --autoattack"),
        (("--attack", "apgd-dlr", "--target", "3"), "--target does nothing here"),
        (("--search", "fp32", "--precision", "bf16"), "--search fp32 beside --precision bf16"),
        (("--target", "11"), "unknown class '11'"),
        (("--attack", "pdg"), "did you mean 'pgd'?"),
        (("--save", "images.pt"), ".safetensors"),
    ],
)
def test_bad_input(digits_run, words, said):
    result = run_cli("evaluate", str(digits_run[0]), *words)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())


def test_what_is_said_of_trainings_attacks_is_so():
    for name, attack in functions("core", "Attack").items():
        assert ("steps" in attack.parameters) == (name in evaluate.options.WITH_STEPS)
        assert ("step_size" in attack.parameters) == (name in evaluate.options.WITH_STEP_SIZE)


def test_figures_alone_on_standard_output(digits_run):
    size = ("--examples", "30", "--steps", "2", "--no-checks")
    result = run_cli("evaluate", str(digits_run[0]), *size, "--json", "-")
    assert json.loads(result.stdout)["examples"] == 30
    assert set(OWN) <= set(evaluate.options.attack_names())


NAN = """
import torch
from torch import nn


class Now(nn.Module):
    normalized = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return torch.where(x.mean((1, 2, 3))[:, None] > 0.31, torch.nan, logits)


def factory():
    return Now()
"""


def test_logits_that_are_nan_are_no_class(tmp_path, monkeypatch):
    """Nor the class 0, which argmax makes of them; and what was saved is gone on from."""
    (tmp_path / "now_and_then.py").write_text(NAN)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = __import__("now_and_then").factory()
    card = checkpoints.Card(
        model="now_and_then:factory", num_classes=10, image_shape=(1, 8, 8), mean=(0.0,),
        std=(1.0,), dataset="digits", epsilon=0.05,
    )  # fmt: skip
    path = checkpoints.save(tmp_path / "n", network.state_dict(), card, network=network)
    saved = tmp_path / "kept.safetensors"
    words = (
        "evaluate", str(path), "--model", card.model, "--examples", "60", "--steps", "2", "--save",
        str(saved), "--no-checks", "--page", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert run_cli(*words).returncode == 0
    held = load_file(saved)
    assert set(held["predicted"][held["predicted"] < 0].tolist()) == {-1}
    assert (held["fell_to"][held["predicted"] < 0] >= 0).all(), "it is right about none of them"
    assert "none (NaN)" in (tmp_path / "page.html").read_text()
    assert "60 examples are done" in run_cli(*words).stdout
