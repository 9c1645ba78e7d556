"""How a judge is named on the command line. Without torch: the help needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from funcrobust.core.errors import FuncrobustError
from funcrobust.files import name_and_path
from funcrobust.reading import user_path
from funcrobust.running.marks import Spelled


class JudgeName(NamedTuple):
    """What a name means: a checkpoint called ``name``, or a network and its weights.

    Without a ``file`` the network's own library fetches them.
    """

    kind: Literal["checkpoint", "inception", "timm"]
    name: str
    file: Path | None = None


def read_judge_name(text: str) -> JudgeName:
    """Read ``inception``, ``inception:FILE``, ``timm:NAME``, ``timm:NAME=FILE``, or a checkpoint.

    Raises `FuncrobustError` where a part is missing.
    """
    kind, colon, rest = text.partition(":")
    if kind == "inception":
        if colon and not rest:
            raise FuncrobustError("the judge inception: lacks its file: inception, inception:FILE")
        return JudgeName("inception", kind, user_path(rest) if rest else None)
    if kind == "timm":
        return JudgeName("timm", *name_and_path(text, kind))
    return JudgeName("checkpoint", text)


JudgeOption = Annotated[str, Spelled(read_judge_name)]
