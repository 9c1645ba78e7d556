"""The pages for those who come from another library: both sides of each pair run, and agree."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGES = Path(__file__).resolve().parent.parent / "docs" / "coming-from"
BLOCK = re.compile(r'^```python title="(.+?)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
NAME = re.compile(r"^(?:_, )?(\w+) = ", re.MULTILINE)
PAIRS = {"torchattacks": 6, "foolbox": 5, "robustness": 4, "optax": 5}


@pytest.fixture
def without_a_gpu(monkeypatch):
    """robustness calls .cuda() whatever the machine."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)


def compared(theirs: str, ours: str) -> str:
    """Return what the pair is for: the name that the last statements of both give a value."""
    name = NAME.findall(theirs)[-1]
    assert NAME.findall(ours)[-1] == name
    return name


@pytest.mark.parametrize("library", PAIRS)
def test_both_sides_give_the_same(library, without_a_gpu):
    pytest.importorskip(library)
    blocks = BLOCK.findall((PAGES / f"{library}.md").read_text())
    once = dict(blocks)
    theirs: dict = {}
    exec(once["both"], theirs)
    ours = dict(theirs)
    exec(once.get(f"{library}, once", ""), theirs)
    blocks = [(title, code) for title, code in blocks if title in (library, "funcrobust")]
    assert [title for title, _ in blocks] == [library, "funcrobust"] * PAIRS[library]
    for (_, their_code), (_, our_code) in zip(blocks[::2], blocks[1::2], strict=True):
        name = compared(their_code, our_code)
        exec(their_code, theirs)
        exec(our_code, ours)
        a, b = (np.asarray(torch.as_tensor(np.array(side[name]))) for side in (theirs, ours))
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5, name


def test_every_page_is_among_them():
    assert {page.stem for page in PAGES.glob("*.md")} == set(PAIRS)
