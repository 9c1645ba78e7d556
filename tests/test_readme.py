"""What a reader of the README does first: its code runs, commands can be said, links lead on."""

from __future__ import annotations

import re
import shlex

import pytest
from problems import ROOT, parsed

from funcrobust import checkpoints

TEXT = (ROOT / "README.md").read_text()
READY = {"RUN": "cifar10-linf-tiny", "TASK": "inpainting", "FILE": "net.pt"}
SAID = re.findall(r"^    python cli\.py (.+)$|`(?:python )?cli\.py ([^`]+)`", TEXT, re.MULTILINE)


def test_its_code_runs_from_top_to_bottom(capsys):
    names = dict[str, object]()
    for block in re.findall(r"^```python\n(.+?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert "tensor(" in capsys.readouterr().out
    assert names["state"].step == 1
    assert set(names["metrics"]) >= {"loss", "curvature"}


@pytest.mark.parametrize("said", [a or b for a, b in SAID])
def test_its_commands_can_be_said(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [READY.get(word, word) for word in shlex.split(said)]
    if words[0] != "runs":
        parsed(*words)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", TEXT)
    assert links
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_its_table_of_classifiers_is_the_cards():
    cell = r"[^|]*\|"
    rows = re.findall(rf"^\| `(cifar10-[\w-]+)`{cell}{cell}{cell}([^|]*)\|([^|]*)\|", TEXT, re.M)
    cards = {name: checkpoints.load(name)[1] for name in checkpoints.shipped()}
    assert {name for name, *_ in rows} == {n for n, c in cards.items() if "pgd50x10" in c.metrics}
    for name, *said in rows:
        shares = [cards[name].metrics[figure] for figure in ("clean", "pgd50x10")]
        assert [each.split()[0] for each in said] == [f"{share:.1%}"[:-1] for share in shares]
