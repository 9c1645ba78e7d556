"""The examples, run: what they print is compared with what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NUMBER = re.compile(r"(?<![\w-])-?\d+(?:\.\d+)?(?!\w)")


@pytest.fixture
def run(capsys):
    """Run an example as ``python examples/NAME.py`` does; its lines, and the numbers in each.

    Numbers within names, as of PGD-20 and 32x32, do not count.
    """

    def run(name: str) -> tuple[list[str], list[list[float]]]:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        assert 1 <= len(lines) <= 6
        return lines, [[float(n) for n in NUMBER.findall(s)] for s in lines]

    return run


def test_there_are_seven_of_at_most_eighty_lines():
    assert len(SCRIPTS) == 7
    assert all(len(path.read_text().splitlines()) <= 80 for path in SCRIPTS)


def test_own_module(run):
    _, numbers = run("own_module")
    clean, held = zip(*numbers, strict=True)
    assert min(clean) > 90
    assert held[0] + 30 < held[1] < held[2]  # clean images, adversarial, also with CURE


def test_own_threat_model(run):
    _, (plain, low, slope) = run("own_threat_model")
    assert plain[-2] < low[-2] < 75  # accuracy: a subset of the ball attacks less, but does
    assert plain[-1] < 90
    assert low[-1] > 99  # percent of the energy
    assert slope[0] == pytest.approx(slope[1], rel=1e-4)


def test_own_loss(run):
    _, (_, *weights, slope) = run("own_loss")
    roughness = [line[-1] for line in weights]
    assert roughness[0] > roughness[1] > roughness[2]
    assert weights[0][1] >= 75  # percent of the images that reach the target class
    assert slope[0] == pytest.approx(slope[1], rel=1e-4)
    assert slope[0] < 0


def test_psi_layer(run):
    _, (noisy, before, after) = run("psi_layer")
    assert after[-2] < 0.93 * noisy[-1]  # the squared error: ψ has learnt to denoise
    assert after[-2] < 0.93 * before[-2]
    assert after[-1] > 55  # percent: and still classifies


def test_spectral_radius(run):
    _, (_, dense, power, whole) = run("spectral_radius")
    assert len(power) == 6  # three images
    assert power == pytest.approx(dense, rel=0.03)
    assert all(radius <= value for radius, value in zip(whole[::2], whole[1::2], strict=True))


def test_cure_on_timm(run):
    pytest.importorskip("timm")
    lines, numbers = run("cure_on_timm")
    assert [line.split()[0] for line in lines] == ["resnet18", "vit_tiny_patch16_224"]
    assert all(2 < line[-1] < 8 for line in numbers)  # percent; 5 to first order


def test_cure_on_timm_without_timm(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    lines, _ = run("cure_on_timm")
    assert "pip install timm" in lines[0]


def test_the_notebook_draws_what_its_classifiers_are_sure_of():
    notebook = nbformat.read(EXAMPLES / "visualise_generation.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored as source alone
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()  # raises if a cell does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.get("text", "") for output in outputs)
    for name in ("tiny", "small"):
        (walk,) = re.findall(rf"cifar10-linf-{name} .*", text)
        sure = [int(percent) for percent in re.findall(r"(\d+)%", walk)]
        assert sure == sorted(sure)
        assert sure[-1] > 70 > 50 > sure[0]


def test_ensemble(run):
    _, (each, clean, together) = run("ensemble")
    assert len(each) == 4
    assert min(each) > 40  # one by one under PGD-5 at 0.1, trained against it for 150 updates
    assert clean[0] > 85
    assert together[0] > 40
