"""Fused attention has no second derivative: where one may be wanted, torch's plain kernel runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

FUSED = frozenset(
    {"scaled_dot_product_attention", "multi_head_attention_forward", "ALL_ATTENTION_FUNCTIONS"}
)
"""What a forward mentions that ends in a fused kernel: torch's own names, and Hugging Face's."""


def uses_fused_attention(module: nn.Module) -> bool:
    """Whether the code of any of its modules, or of a function called there, mentions `FUSED`."""
    seen: set[CodeType] = set()
    return any(
        not FUSED.isdisjoint(_names(function, seen))
        for kind in {type(m) for m in module.modules()}
        for function in _methods(kind)
    )


def differentiable_attention(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Switch attention to the plain kernel where a derivative is being taken, of any order.

    (Whether of second order cannot be known here.) Costs up to a quarter more time than the fused
    kernel on a CPU (ViT-tiny, 65 to 577 tokens), and memory for tokens² numbers a head.
    """
    taken = (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )
    return sdpa_kernel(SDPBackend.MATH) if taken else nullcontext()


def _methods(kind: type) -> Iterator[FunctionType]:
    for base in kind.__mro__:
        if base not in (nn.Module, object):
            found = (inspect.unwrap(f) for f in vars(base).values() if callable(f))
            yield from (f for f in found if isinstance(f, FunctionType))


def _names(function: FunctionType, seen: set[CodeType]) -> set[str]:
    """Every name in a function's code, and in that of the functions it names, outside torch."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        if code in seen:
            continue
        seen.add(code)
        names.update(code.co_names)
        codes.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
        for name in code.co_names:
            called = function.__globals__.get(name)
            if isinstance(called, FunctionType) and not called.__module__.startswith("torch."):
                names |= _names(called, seen)
    return names
