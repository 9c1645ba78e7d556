"""What flags can name is found in text: a new attack is a function and a public name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

import funcrobust as fr
from funcrobust import core
from funcrobust.commands.cure_train import CureTrain
from funcrobust.commands.cure_train.compose import training_attack
from funcrobust.commands.cure_train.options import attack_names, regularisers
from funcrobust.core.errors import FuncrobustError
from funcrobust.running import catalogue
from funcrobust.running.catalogue import attacks, function, parameters


def test_the_attacks_and_regularisers_there_are():
    assert {"rs-fgsm", "n-fgsm", "zerograd", "pgd-k", "fgsm", "pgd", "none"} <= set(attack_names())
    assert attacks()["fgsm"] == attacks()["rs-fgsm"]
    assert {"elle", "gradient-alignment", "local-linearity", "input-gradient-norm"} <= set(
        regularisers()
    )
    assert not {"cure", "linearity-error"} & set(regularisers())


@pytest.mark.parametrize("name", [*attacks(), *regularisers()])
def test_text_and_function_agree(name):
    found = (attacks() | regularisers())[name]
    signature = inspect.signature(getattr(fr, found.name)).parameters
    assert found.parameters == tuple(signature)
    required = {n for n, p in signature.items() if p.default is p.empty}
    assert found.required == required


def test_torch_is_not_imported_to_find_them():
    program = (
        "import sys\n"
        "from funcrobust.commands.cure_train.options import attack_names, regularisers\n"
        "attack_names(), regularisers()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_attack_takes_the_options_that_are_its_parameters():
    assert parameters(CureTrain(attack="pgd", attack_steps=7)) == {"step_size": None, "steps": 7}
    given = CureTrain(attack="n-fgsm", noise=1.5, alpha=0.1)
    assert parameters(given) == {"step_size": 0.1, "noise": 1.5}
    with pytest.raises(FuncrobustError, match="--noise does nothing here: it goes with --attack n"):
        CureTrain(attack="pgd", noise=1.5)


def test_none_leaves_a_parameter_to_its_default():
    ball = fr.linf(8 / 255)
    attack = training_attack(CureTrain(attack="rs-fgsm"), ball)
    x = torch.rand(2, 3, 8, 8)
    start = attack.start(x, fr.generator(0, "start"))
    assert not torch.equal(start, x)
    assert (start - x).abs().max() <= 8 / 255 + 1e-6


def test_a_new_attack_is_its_function_and_its_public_name(tmp_path, monkeypatch):
    """Found by what it gives; called with the options whose names are its parameters."""
    (tmp_path / "toy.py").write_text(
        "from funcrobust.core.attacks import Attack, pgd_k\n"
        "SEEN = []\n"
        "def toy_walk(ball, *, steps=3, noise=1.0) -> Attack:\n"
        "    SEEN.append((steps, noise))\n"
        "    return pgd_k(ball, steps=steps)\n"
        "def helper(ball) -> int:\n"
        "    return 3\n"
    )
    stub = tmp_path / "stub.pyi"
    stub.write_text(catalogue.STUB.read_text() + "\nfrom .core.toy import helper, toy_walk\n")
    monkeypatch.setattr(core, "__path__", [*core.__path__, str(tmp_path)])
    monkeypatch.setattr(catalogue, "STUB", stub)
    assert "toy-walk" in attack_names()
    assert "helper" not in attack_names()
    options = CureTrain(attack="toy-walk", attack_steps=5)
    assert isinstance(training_attack(options, fr.linf(0.1)), fr.Attack)
    from funcrobust.core import toy

    assert toy.SEEN == [(5, 2.0)], "the option's default is the flag's, not the function's"
    with pytest.raises(FuncrobustError, match="--quantile does nothing here"):
        CureTrain(attack="toy-walk", quantile=0.1)


def test_a_function_that_is_not_public_and_a_module_that_is_not_there():
    assert function("core.applications.painting", "plan").required >= {"hole", "feature"}
    with pytest.raises(FuncrobustError, match="no module"):
        function("core.nowhere", "plan")
