"""Batch norm as what it is in each mode: pure, and cheap to differentiate twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from funcrobust.core.errors import FuncrobustError
from funcrobust.core.examples import at_least_single
from funcrobust.core.shards import Shard


class AffineBatchNorm(nn.Module):
    """Evaluation-mode batch norm as what it is then: one scale and one shift a channel.

    Equal to ``F.batch_norm(training=False)``, whose own second derivative takes many passes over
    the images: with this, a CURE gradient takes four fifths of the time (preact-tiny, CPU). In
    half precision scale and shift are rounded like the images: an error of about 2⁻⁹·mean/std.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps: float = norm.eps  # type: ignore[assignment]
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.kind: type[nn.Module] = getattr(norm, "kind", type(norm))

    def forward(self, x: Tensor) -> Tensor:
        self._require_dimensions(x)
        assert isinstance(self.running_mean, Tensor)
        assert isinstance(self.running_var, Tensor)
        return self._affine(x, self.running_mean, self.running_var)

    def _require_dimensions(self, x: Tensor) -> None:
        self.kind._check_input_dim(self, x)  # type: ignore[attr-defined]

    def _affine(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = torch.rsqrt(var + self.eps)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        scale = scale if weight is None else weight * scale
        shift: Tensor = -mean * scale
        shift = shift if bias is None else torch.add(shift, bias)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.to(x.dtype).reshape(shape), x, scale.to(x.dtype).reshape(shape))


class OwnBatchNorm(AffineBatchNorm):
    """Batch norm by the batch's own statistics that keeps no running ones, so that it is pure.

    Its derivatives, of every order, are those of means and products: ``F.batch_norm`` would write
    to its buffers, which torch.compile does not follow into nested derivatives.
    """

    shard = Shard()  # of this process alone

    def forward(self, x: Tensor) -> Tensor:
        self._require_dimensions(x)
        mean, var = self._moments(x)
        return self._affine(x, mean, var)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = at_least_single(x)  # sums over a batch, as torch has them
        # Rows of channels, as they lie in memory (channels last): torch.var_mean of the axes takes
        # four times as long on a CPU, and its derivative twice.
        rows = exact.movedim(1, -1).reshape(-1, x.shape[1])
        if len(rows) * self.shard.size == 1:  # torch's own refuses it too
            raise FuncrobustError(
                "batch norm by the batch's statistics needs more than one value a channel: a batch "
                "of two, or evaluation mode"
            )
        mean = rows.mean(0)
        return mean, (rows - mean).square().mean(0)


class SharedBatchNorm(OwnBatchNorm):
    """Batch norm by the statistics of a batch whose rows lie on several processes."""

    def __init__(self, norm: nn.Module, shard: Shard) -> None:
        super().__init__(norm)
        self.shard = shard

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the whole, from those of its equal parts (Chan et al. 1979).

        The mean of the means; and that of the variances plus the variance of the means.
        """
        means, variances = self.shard.all_of(torch.stack(super()._moments(x))).unbind(1)
        mean = means.mean(0)
        return mean, (variances + (means - mean).square()).mean(0)


class RunningBatchNorm(SharedBatchNorm):
    """The same in training mode: it moves its running statistics, as torch's does."""

    def __init__(self, norm: nn.Module, shard: Shard) -> None:
        super().__init__(norm, shard)
        self.momentum: float | None = norm.momentum  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        self._require_dimensions(x)
        mean, var = self._moments(x)
        count = x.numel() // x.shape[1] * self.shard.size
        buffers = self._buffers
        counter = buffers["num_batches_tracked"]
        assert counter is not None
        counter.add_(1)
        m = 1.0 / counter.to(mean) if self.momentum is None else self.momentum
        unbiased = var * (count / max(count - 1, 1))
        for name, new in (("running_mean", mean), ("running_var", unbiased)):
            old = buffers[name]
            assert old is not None
            old.mul_(1.0 - m).add_(m * new.detach().to(old))
        return self._affine(x, mean, var)


def replace_batch_norms(
    module: nn.Module,
    by: Callable[[nn.Module], nn.Module],
    without: Callable[[nn.Module], nn.Module] = OwnBatchNorm,
) -> nn.Module:
    """Replace the batch norms; their tensors keep their names.

    One that has no running statistics normalises by its batch in every mode: it is replaced by
    ``without``.
    """
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return (without if module.running_mean is None else by)(module)
    for name, child in module.named_children():
        setattr(module, name, replace_batch_norms(child, by, without))
    return module
