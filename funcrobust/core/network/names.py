"""Tensors by name: what a network must be given, and what it was not meant to be given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError


@dataclass(frozen=True)
class Names:
    """The names of a network's parameters, or of its buffers."""

    kind: str
    """``"params"`` or ``"buffers"``."""
    required: frozenset[str]
    tied: dict[str, tuple[str, ...]]
    """All the names of each tensor, by the first."""
    others: frozenset[str]
    """The names of the other kind."""

    @classmethod
    def of(cls, module: nn.Module) -> tuple[Names, Names]:
        """Read the names of a module's parameters and buffers."""
        params, buffers = tied(module.named_parameters), tied(module.named_buffers)
        one, other = frozenset(params), frozenset(buffers)
        return cls("params", one, params, other), cls("buffers", other, buffers, one)

    def check(self, given: Mapping[str, Tensor]) -> None:
        """Raise `FuncrobustError` unless ``given`` has all tensors and no stranger with a dot.

        Tied tensors may go by any of their names. Names without a dot that the network does not
        know are let pass: parameters of one's own, for a loss to use. Compiled code skips this.
        """
        if torch.compiler.is_compiling():
            return
        if not isinstance(given, Mapping):
            raise FuncrobustError(
                f"{self.kind} is a dict of tensors by name, got {type(given).__name__}: pass "
                f"functionalize(module).{self.kind}"
            )
        if given.keys() != self.required:
            self._explain(given)

    def _explain(self, given: Mapping[str, Tensor]) -> None:
        known = {name for names in self.tied.values() for name in names}
        strangers = sorted(given.keys() - known)
        missing = sorted(
            first for first, names in self.tied.items()
            if given.keys().isdisjoint(names) and not first.endswith(_COUNTER)
        )  # fmt: skip
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FuncrobustError(
                f"{self.kind} has no {missing[0]!r}{more}, which the network needs"
                f"{_near(missing[0], strangers, 'is it called')}"
            )
        for name in strangers:
            if name in self.others:
                raise FuncrobustError(
                    f"{name!r} is not one of the network's {self.kind}, which stand apart: pass "
                    f"functionalize(module).{self.kind}, not a state_dict"
                )
            if "." in name:
                raise FuncrobustError(
                    f"{self.kind} has {name!r}, which the network does not know"
                    f"{_near(name, known, 'did you mean')} (a name of your own has no dot)"
                )


_COUNTER = "num_batches_tracked"
"""A buffer that batch norm counts in, and that no logits depend on."""


def tied(named: Callable[..., Iterable[tuple[str, Tensor]]]) -> dict[str, tuple[str, ...]]:
    """All the names of each tensor, by the first."""
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in named(remove_duplicate=False):
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return {group[0]: group for group in names.values()}


def _near(name: str, candidates: Iterable[str], question: str) -> str:
    near = get_close_matches(name, list(candidates), n=1)
    return f": {question} {near[0]!r}?" if near else ""
