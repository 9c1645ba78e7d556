"""What a network draws (dropout, drop-path, noise), counted instead of global.

One mode stands between the network and torch: whatever its modules are, their random functions are
answered from a key, so that the masks are a function of the key and of the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.randomness import box_muller, uniform
from funcrobust.core.shards import Shard


class CountedDraws(TorchFunctionMode):
    """Inside, dropout and its relatives draw from ``key``; without one, drawing raises.

    Works in eager mode and compiled, under ``grad`` and ``vmap``. Counted are ``F.dropout`` and its
    kin for whole channels, dropout within ``F.scaled_dot_product_attention``, ``bernoulli``,
    ``torch.rand``, ``torch.randn``, their ``_like`` and ``normal_``, and so what is built on them:
    ``nn.Dropout``, the ``DropPath`` of timm and Hugging Face, ``torchvision.ops.StochasticDepth``,
    Gaussian noise on images or features. What else is random raises
    `FuncrobustError` where it would draw. Masks are drawn in float32 whatever x's precision, so
    that they are the same in all. ``shard`` says which rows of the batch are here: the masks are
    those that one process would draw for all rows.
    """

    def __init__(self, key: Tensor | None, shard: Shard) -> None:
        super().__init__()
        self.key = key
        self.count = 0
        self.shard = shard

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        counted = _COUNTED.get(func)
        if counted is not None:
            return counted(self, func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def uniform(self, shape: Any, device: torch.device) -> Tensor:
        """Draw float32 numbers from [0, 1)."""
        if self.key is None:
            raise FuncrobustError(
                "this network draws random numbers (dropout, say), which must be "
                "counted: pass key=fr.key(seed, 'dropout', step) to predict_train, in an update's "
                "fr.Batch(..., key=) too, or set its probabilities to 0"
            )
        self.count += 1
        whole, (rank, size) = list(shape), (self.shard.rank, self.shard.size)
        if whole and size > 1:
            whole[0] *= size
        found: Tensor = uniform(self.key.to(device), self.count, whole)
        return found[rank::size] if whole and size > 1 else found

    def normal(self, shape: Any, device: torch.device) -> Tensor:
        """Draw float32 numbers from N(0, 1)."""
        u, v = (self.uniform(shape, device) for _ in range(2))
        return box_muller(u, v)

    def keeping(self, x: Tensor, p: float, shape: Any) -> Tensor:
        """Draw a mask of ``shape`` that keeps the mean: 1/(1 − p) with probability 1 − p, or 0."""
        kept = self.uniform(shape, x.device) >= p
        return kept.to(x.dtype) / (1.0 - p if p < 1.0 else 1.0)


def _dropout(
    draws: CountedDraws, _: Any, x: Tensor, p: float = 0.5, training: bool = True,
    inplace: bool = False,
) -> Tensor:  # fmt: skip
    return _times_mask(draws, x, x.shape, p if training else 0.0, inplace)


def _channel_dropout(batched: int | None = None) -> Callable[..., Any]:
    """Dropout of whole channels: of x (B, C, ...), or of one example (C, ...).

    To torch x is one example where it has not ``batched`` dimensions, in 1 and in 3 dimensions of
    space; in 2 it never is.
    """

    def dropped(
        draws: CountedDraws, _: Any, x: Tensor, p: float = 0.5, training: bool = True,
        inplace: bool = False,
    ) -> Tensor:  # fmt: skip
        leading = 2 if batched in (None, x.ndim) else 1
        shape = (*x.shape[:leading], *(1,) * (x.ndim - leading))
        return _times_mask(draws, x, shape, p if training else 0.0, inplace)

    return dropped


def _times_mask(draws: CountedDraws, x: Tensor, shape: Any, p: float, inplace: bool) -> Tensor:
    if p == 0.0:
        return x
    mask = draws.keeping(x, p, shape)
    return x.mul_(mask) if inplace else x * mask


def _attention(
    draws: CountedDraws, func: Any, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    **how: Any,
) -> Tensor:  # fmt: skip
    """``F.scaled_dot_product_attention`` as its documentation writes it, with a counted mask.

    ``how`` are its ``scale`` and ``enable_gqa``.
    """
    if dropout_p == 0.0:
        same: Tensor = func(query, key, value, attn_mask, 0.0, is_causal, **how)
        return same
    scale: float | None = how.get("scale")
    if how.get("enable_gqa", False):
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    out: Tensor = (weights * draws.keeping(weights, dropout_p, weights.shape)) @ value
    return out


def _bernoulli_in_place(
    draws: CountedDraws, func: Any, x: Tensor, p: float | Tensor = 0.5,
    *, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    if generator is not None:
        own: Tensor = func(x, p, generator=generator)
        return own
    return x.copy_(draws.uniform(x.shape, x.device) < p)


def _bernoulli(
    draws: CountedDraws, func: Any, x: Tensor, p: float | None = None,
    *, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    if generator is not None:
        own: Tensor = func(x, generator=generator) if p is None else func(x, p, generator=generator)
        return own
    return (draws.uniform(x.shape, x.device) < (x if p is None else p)).to(x.dtype)


def _fresh(draw: Callable[[CountedDraws, Any, torch.device], Tensor]) -> Callable[..., Any]:
    """``torch.rand`` or ``torch.randn``."""

    def drawn(draws: CountedDraws, func: Any, *size: Any, **options: Any) -> Tensor:
        if options.get("generator") is not None:
            own: Tensor = func(*size, **options)
            return own
        given = options.get("size", size)
        shape = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
        device = options.get("device") or torch.get_default_device()
        found = draw(draws, shape, torch.device(device))
        return found.to(_real(options.get("dtype") or torch.get_default_dtype()))

    return drawn


def _fresh_like(draw: Callable[[CountedDraws, Any, torch.device], Tensor]) -> Callable[..., Any]:
    """``torch.rand_like`` or ``torch.randn_like``."""

    def drawn(draws: CountedDraws, _: Any, x: Tensor, **options: Any) -> Tensor:
        found = draw(draws, x.shape, torch.device(options.get("device") or x.device))
        return found.to(_real(options.get("dtype") or x.dtype))

    return drawn


def _real(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        raise FuncrobustError("complex random numbers are not counted: draw two real ones")
    return dtype


def _normal_in_place(
    draws: CountedDraws, func: Any, x: Tensor, mean: float = 0.0, std: float = 1.0,
    *, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    if generator is not None:
        own: Tensor = func(x, mean, std, generator=generator)
        return own
    return x.copy_(mean + std * draws.normal(x.shape, x.device))


def _refused(_: CountedDraws, func: Any, *args: Any, **options: Any) -> Any:
    draws = _ONLY_IF.get(func, _always)
    if options.get("generator") is not None or not draws(*args, **options):
        return func(*args, **options)
    raise FuncrobustError(
        f"this network calls {func.__name__}, whose random numbers are not counted (those of "
        "dropout, drop-path and noise by torch.randn are): set its probability to 0, or leave it "
        "out"
    )


def _always(*_: Any, **__: Any) -> bool:
    return True


def _self_normalising(
    _x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False  # noqa: ARG001
) -> bool:  # fmt: skip
    return training and p > 0.0


def _torchs_dropout(_input: Tensor, p: float, train: bool | None) -> bool:
    return bool(p > 0.0 and train is not False)


def _leaky(
    _input: Tensor, lower: float = 0.0, upper: float = 0.0, training: bool = False,  # noqa: ARG001
    *_: Any, **__: Any,
) -> bool:  # fmt: skip
    return training


def _multi_head(*args: Any, training: bool = True, **_: Any) -> bool:
    dropout_p = args[10]  # its eleventh parameter, as nn.MultiheadAttention calls it
    return training and bool(dropout_p > 0.0)


def _recurrent(*args: Any) -> bool:
    """(..., layers, dropout, training, ...), which stands in two places."""
    at = next(i for i, value in enumerate(args) if isinstance(value, float))
    return bool(args[at] > 0.0 and args[at + 1])


_ONLY_IF: dict[Any, Callable[..., bool]] = {
    F.alpha_dropout: _self_normalising,
    F.feature_alpha_dropout: _self_normalising,
    F.rrelu: _leaky,
    torch.rrelu: _leaky,
    torch.rrelu_: _leaky,
    F.multi_head_attention_forward: _multi_head,
}
_ONLY_IF |= dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent)
_ONLY_IF |= dict.fromkeys(
    (
        torch.native_dropout, torch.dropout_, torch.feature_dropout_, torch.alpha_dropout,
        torch.alpha_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_,
    ),
    _torchs_dropout,
)  # fmt: skip
"""When a function that is refused draws at all, by its arguments."""

_UNCOUNTED = (
    torch.randint, torch.randint_like, torch.randperm, torch.normal, torch.poisson,
    torch.multinomial, torch.Tensor.multinomial, torch.Tensor.uniform_, torch.Tensor.random_,
    torch.Tensor.exponential_, torch.Tensor.cauchy_, torch.Tensor.geometric_,
    torch.Tensor.log_normal_, F.gumbel_softmax, F.fractional_max_pool2d, F.fractional_max_pool3d,
    torch.binomial, torch._standard_gamma, torch._sample_dirichlet, *_ONLY_IF,
)  # fmt: skip

_COUNTED: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _channel_dropout(batched=3),
    F.dropout2d: _channel_dropout(),
    F.dropout3d: _channel_dropout(batched=5),
    torch.feature_dropout: _channel_dropout(),
    F.scaled_dot_product_attention: _attention,
    torch.Tensor.bernoulli_: _bernoulli_in_place,
    torch.Tensor.bernoulli: _bernoulli,
    torch.bernoulli: _bernoulli,
    torch.Tensor.normal_: _normal_in_place,
    torch.rand: _fresh(CountedDraws.uniform),
    torch.randn: _fresh(CountedDraws.normal),
    torch.rand_like: _fresh_like(CountedDraws.uniform),
    torch.randn_like: _fresh_like(CountedDraws.normal),
} | dict.fromkeys(_UNCOUNTED, _refused)
