"""``runs``: a table in which a broken folder is one line, and two runs beside each other."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from pages import CHROMIUM, Seen, require_self_contained, require_shown_well
from PIL import Image
from problems import run_cli

from funcrobust import checkpoints, data

HOSTILE = "<script>\"'\n\x1b[1m&"


@pytest.fixture(scope="module")
def folder(digits_run, tmp_path_factory):
    """A run, one like it with other options and no result, and what is no run."""
    out = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        shutil.copytree(digits_run[0], out / name)
    (out / "two" / "result.json").unlink()
    config = out / "two" / "config.json"
    record = json.loads(config.read_text())
    record["options"] |= {"h": 1.25, "seed": 9}
    config.write_text(json.dumps(record | {"created": "2001-02-03T04:05:06+00:00"}))
    records = (out / "two" / "metrics.jsonl").read_text().splitlines()
    (out / "two" / "metrics.jsonl").write_text("\n".join(records[:3]) + "\n")
    (out / "notes").mkdir()
    (out / ".run.tmp").mkdir()
    (out / ".run.tmp" / "config.json").write_text("{")
    return out


BROKEN = {
    "empty": b"", "deep": b"[" * 50_000, "binary": b"\xff\xfe", "no options": b"{}",
    "hostile": json.dumps({"options": {"dataset": HOSTILE}, "command": 3, "created": []}).encode(),
}  # fmt: skip


def test_a_table_of_all(folder, tmp_path):
    out = tmp_path / "runs"
    shutil.copytree(folder, out)
    for name, content in BROKEN.items():
        (out / name).mkdir()
        (out / name / "config.json").write_bytes(content)
    shutil.copytree(folder / "one", out / "damaged")
    (out / "damaged" / "metrics.jsonl").write_text("{\n{}\n")
    done = run_cli("runs", "--out", str(out), "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    title, header, _, *rows = done.stdout.splitlines()
    assert title == f"8 runs in {out}"
    assert header.split() == [
        "run", "command", "dataset", "clean", "robust", "state", "date",
    ], "no column that none has"  # fmt: skip
    lines = {row[: row.index("  ")].strip(): row for row in rows if not row.startswith("warning")}
    figures = json.loads((folder / "one" / "result.json").read_text())["metrics"]
    for text in ("cure-train", "digits", f"{figures['clean']:.1%}", f"{figures['worst']:.1%}"):
        assert text in lines["one"]
    assert "unfinished" in lines["two"]
    assert "02-03 04:05" in lines["two"]
    broken = [*set(BROKEN) - {"hostile"}, "damaged"]
    assert all("broken" in lines[name] for name in broken)
    assert "\x1b" not in done.stdout
    assert len([row for row in rows if row.startswith("warning")]) == len(broken)
    found = {run["name"]: run for run in json.loads((tmp_path / "found.json").read_text())["runs"]}
    assert set(found) == {"one", "two", "damaged", *BROKEN}
    assert found["one"]["clean"] == figures["clean"]
    assert found["two"]["robust"] == json.loads(
        (folder / "two" / "metrics.jsonl").read_text().splitlines()[-1]
    )["test_worst"]  # fmt: skip
    assert all(found[name]["error"] for name in broken)
    assert next(run["name"] for run in found.values() if run["date"]) == "two", "the oldest first"


def test_none_and_json_alone(folder, tmp_path):
    none = run_cli("runs", cwd=tmp_path)
    assert (none.returncode, none.stdout.count("\n")) == (0, 1)
    assert "no runs in" in none.stdout
    (tmp_path / "empty").mkdir()
    assert "no runs in empty" in run_cli("runs", "--out", "empty", cwd=tmp_path).stdout
    for replaced in (False, True):
        done = run_cli("runs", "--out", str(folder), "--json", "found.json", cwd=tmp_path)
        assert ("found.json is there already, and will be replaced" in done.stdout) == replaced
    piped = run_cli("runs", "--out", str(folder), "--json", "-")
    assert [run["name"] for run in json.loads(piped.stdout)["runs"]] == ["two", "one"]


def test_a_place_at_home_is_written_there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(folder, tmp_path / "home" / "runs")
    (tmp_path / "here").mkdir()
    done = run_cli("runs", "--out=~/runs", "--json=~/x.json", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "home" / "x.json").read_text())["runs"]) == 2
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture(scope="module")
def compared(folder, tmp_path_factory):
    here = tmp_path_factory.mktemp("here")
    done = run_cli("runs", "one", str(folder / "two"), "--out", str(folder), cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout, (here / "comparison.html").read_text(encoding="utf-8"), here


def test_two_are_compared_in_tables(compared):
    said, *_ = compared
    options = said[said.index("options that differ") :].splitlines()
    assert [line.split() for line in options[3:5]] == [
        ["--seed", "0", "9"], ["--h", "3", "1.25"],
    ]  # fmt: skip
    assert re.search(r"clean +\d+\.\d % +–", said)
    assert said.splitlines()[-1] == "page: comparison.html"


def test_and_on_a_page(compared, folder):
    seen = require_self_contained(compared[1])
    at = -1
    for part in ("one and two", "Figures", "--seed", "Curves", "The same test images under both",
                 "Pictures of one", "Pictures of two", "To repeat it"):  # fmt: skip
        at = seen.text.find(part, at + 1)
        assert at >= 0, f"{part} is not there, or not in its place"
    both = [svg["aria-label"] for svg in seen.all("svg") if "aria-label" in svg]
    loss = next(label for label in both if label.startswith("loss"))
    ends = [
        json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("one", "two")
    ]
    assert loss == "loss" + "".join(
        f"; {name}: {end['loss']:.4g} at update {end['step']:g}"
        for name, end in zip(("one", "two"), ends, strict=True)
    )


def test_the_images_are_the_first_of_each_class_and_the_same_under_both(compared):
    digits = data.load("digits")
    first = [int((digits.y_test == c).nonzero()[0, 0]) for c in range(10)]
    wanted = [digits.x_test[i, 0].numpy() for i in first]
    clean = [i for i in Seen(compared[1]).all("img") if i["alt"].endswith(", clean")]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
        for image in clean
    ]
    assert len(shown) == 20
    for i, image in enumerate(shown):
        assert np.array_equal(image, wanted[i // 2])
    attacked = [i["src"] for i in Seen(compared[1]).all("img") if "attacked by way of" in i["alt"]]
    assert attacked[::2] == attacked[1::2], "of one network twice"
    assert not set(attacked) & {i["src"] for i in clean}


def test_a_page_that_was_there_is_replaced_if_it_is_named(folder, compared):
    words = ("runs", "one", "two", "--out", str(folder), "--no-images")
    before = (compared[2] / "comparison.html").read_bytes()
    beside = run_cli(*words, cwd=compared[2])
    assert beside.stdout.splitlines()[-1] == "page: comparison-2.html"
    assert (compared[2] / "comparison.html").read_bytes() == before
    again = run_cli(*words, "--page", "comparison.html", cwd=compared[2])
    assert again.stdout.splitlines()[-1] == "page: comparison.html, in place of the one before"
    text = (compared[2] / "comparison.html").read_text(encoding="utf-8")
    assert "They were left out." in require_self_contained(text).text


def test_one_figure_of_two_commands_has_one_name(folder, tmp_path):
    """psi-train calls "robust" what is cure-train's pgd20."""
    shutil.copytree(folder / "one", tmp_path / "psi")
    result = json.loads((tmp_path / "psi" / "result.json").read_text())
    figures = result["metrics"]
    (name,) = (key for key in figures if key.startswith("pgd"))
    result["metrics"] = {"robust" if k == name else k: v for k, v in figures.items()}
    (tmp_path / "psi" / "result.json").write_text(json.dumps(result))
    done = run_cli("runs", str(folder / "one"), str(tmp_path / "psi"), "--no-page", "--json", "-")
    both = json.loads(done.stdout)["figures"]
    assert both[name] == [figures[name]] * 2
    assert "robust" not in both


def test_a_network_that_cannot_be_loaded_leaves_the_rest(folder, tmp_path):
    shutil.copytree(folder / "one", tmp_path / "bare")
    for path in tmp_path.glob("bare/*.safetensors"):
        path.unlink()
    done = run_cli("runs", str(folder / "one"), str(tmp_path / "bare"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: no images" in done.stdout
    assert "no option differs" in done.stdout
    assert "They cannot be shown" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


NET = """
from torch import nn
def make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_runs_of_a_network_of_ones_own(tmp_path):
    """What a training says is next, and what compares two, says whose code it is."""
    (tmp_path / "my_net.py").write_text(NET)
    size = "--train-examples 64 --test-examples 20 --evaluate-examples 20 --robust-examples 20"
    done = run_cli(
        "cure-train", "--dataset", "digits", "--model", "my_net:make", "--name", "one",
        "--epochs", "1", "--batch-size", "32", *size.split(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of them 64 training and 20 test images, at random" in done.stdout
    for said in ("evaluate runs/one", "psi-train --checkpoint runs/one"):
        assert f"funcrobust {said} --model my_net:make\n" in done.stdout
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    for model, shown in ((), False), (("--model", "my_net:make"), True):
        done = run_cli("runs", "one", "two", *model, "--page", "both.html", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("warning: no images" in done.stdout) != shown


def test_runs_on_data_of_ones_own(tmp_path):
    """What is missing is said in one line, and with it the images are shown."""
    (tmp_path / "my_net.py").write_text(NET)
    x, y = np.arange(40 * 64, dtype=np.uint8).reshape(40, 1, 8, 8), np.arange(40) % 4
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    size = "--epochs 1 --batch-size 20 --evaluate-examples 8 --robust-examples 8 --lambda 0"
    done = run_cli(
        "cure-train", "--dataset", "own.npz", "--model", "my_net:make", "--name", "one",
        *size.split(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    both = ("--model", "my_net:make", "--dataset", "own.npz")
    for said, shown in ((), False), (both, True):
        done = run_cli("runs", "one", "two", *said, "--page", "both.html", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("warning: no images" in done.stdout) != shown
        assert (" ".join(both) in done.stdout) != shown
    page = Seen((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert len([i for i in page.all("img") if i["alt"].endswith(", clean")]) == 8
    for command in ("evaluate", "generate"):
        refused = run_cli(command, "runs/one", cwd=tmp_path)
        assert refused.returncode == 2
        assert f"say {' '.join(both)}\n" in refused.stderr


def test_what_is_next_after_somebody_elses_network(digits_run, tmp_path):
    """The commands run as they are printed; of two networks the foreign one is told its name."""
    module, card = checkpoints.load(digits_run[0])
    torch.save(module.net.state_dict(), tmp_path / "fd.pt")
    size = "--test-examples 20 --evaluate-examples 20 --heldout-examples 10 --strips 0 --updates 1"
    done = run_cli(
        "psi-train", "--checkpoint", "fd.pt", "--model", card.model, "--dataset", "digits",
        "--name", "one", *size.split(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines() if line.startswith("  funcrobust ")]
    evaluate, generate, _ = (words[1:] for words in said)
    assert evaluate == ["evaluate", "runs/one"]
    told = ["--model", card.model, "--dataset", "digits"]
    assert generate == ["generate", "fd.pt", "runs/one", *told]
    for words in ([*evaluate, "--no-checks", "--no-page"], generate):
        done = run_cli(*words, "--steps", "1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cli("runs", "--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert f"cannot read {tmp_path / 'file'}: Not a directory" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("one",), "runs compares two, got 1"),
        (("one", "two", "one"), "runs compares two, got 3"),
        (("one", "tow"), "no run 'tow' (did you mean 'two'?)"),
        (("one", "one"), "the same run twice"),
        (("one", "notes"), "is not a run folder"),
        (("--no-images",), "--images does nothing here"),
        (("--page", "a.html"), "--page does nothing here: it needs FOLDERS"),
        (("one", "two", "--page", "a.txt"), "--page must name a .html file"),
        (("one", "two", "--no-page", "--no-images"), "do nothing here: they are about the page"),
        (("one", "two", "--no-page", "--model", "a:b"), "do nothing here: they are about the page"),
        (("--dataset", "digits"), "--dataset does nothing here: it needs FOLDERS"),
        (("one", "two", "--no-page", "--dataset", "digits"), "do nothing here: they are about the"),
        (("one", "two", "--model", "nosuch:thing"), "--model does nothing here: neither run is of"),
        (("one", "two", "--modle", "a:b"), "unknown option: --modle. Did you mean --model?"),
    ],
)
def test_what_is_refused(folder, words, said):
    done = run_cli("runs", *words, "--out", str(folder))
    assert done.returncode == 2, done.stdout
    assert said in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH, nor named by CHROMIUM")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_a_browser_shows_it_without_scrolling_sideways(compared, tmp_path, width, dark):
    require_shown_well(compared[1], tmp_path, width, dark)
