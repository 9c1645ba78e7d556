"""What checkpoints need said, since no file may choose it: the code called, the data read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from funcrobust.checkpoints.loading import card_of, model_of, needs_model
from funcrobust.checkpoints.zoo import is_zoo
from funcrobust.core.errors import FuncrobustError
from funcrobust.models.flip_averaged import FLIP
from funcrobust.models.registry import names_code
from funcrobust.running.dataset import is_own_data
from funcrobust.running.groups import Images


def require_said(names: Sequence[str], models: Sequence[str], images: Images) -> None:
    """Raise, in one line, where the checkpoints' cards need more than one thing that was not said.

    Code, and the first one's data where these are one's own. Of one thing alone whoever needs it
    says so, and where no code is unsaid nothing is raised.
    """
    cards = {name: card_of(name) for name in names if not is_zoo(name)}
    needy = {n: c for n, c in cards.items() if c and names_code(c.model) and c.model not in models}
    known = [c.model for c in cards.values() if c]
    wanted = [*(m for m in models if m in known), *(c.model for c in needy.values())]
    flags = [f"--model {shlex.quote(model)}" for model in wanted]
    first = cards.get(names[0])
    if first is not None and images.dataset is None and is_own_data(first):
        flags.append(f"--dataset {shlex.quote(first.dataset)}")
    flags = list(dict.fromkeys(flags))
    if needy and len(flags) > 1:
        whose = " and ".join(needy)
        raise FuncrobustError(
            f"{whose}: a file may choose neither the code that is called nor the data that are "
            f"read: if you trust what it names, say {' '.join(flags)}"
        )


def shared_out(models: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """Return for each checkpoint which of ``models`` it is loaded as; None is what it says itself.

    One alone is for those that need it; where none does, each compares it with its own.

    Raises `FuncrobustError` where there are several and a file does not say which it is of, or
    one of them is no checkpoint's.
    """
    if not models:
        return [None] * len(names)
    needy = [name for name in names if needs_model(name)] or list(names)
    found = [
        _own(models, name, len(needy)) if name in needy else _said(models, model_of(name))
        for name in names
    ]
    unused = [model for model in models if model not in found]
    said = [model for name, model in zip(names, found, strict=True) if name in needy]
    if unused and None not in said:
        raise FuncrobustError(f"--model {unused[0]} does nothing here: no checkpoint is of it")
    return found


def _own(models: Sequence[str], name: str, needy: int) -> str | None:
    """Return which of the models a checkpoint is of, which is one of so many that need one."""
    own = model_of(name)
    if (said := _said(models, own)) is not None:
        return said
    if own is None and len(models) > 1:
        raise FuncrobustError(
            f"{name} does not say which network it is, and --model is there {len(models)} times: "
            "beside it --model can be there once only"
        )
    only = own is None or needy == 1 or not names_code(own)
    return models[0] if only else None


def _said(models: Sequence[str], own: str | None) -> str | None:
    """Return which of the models is a network of its own, or looks into the mirror by it."""
    both = (own, f"{own}{FLIP}")
    return next((model for model in both if model is not None and model in models), None)
