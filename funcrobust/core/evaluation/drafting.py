"""Search on a cheaper network, count what fools the one under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from funcrobust.core.evaluation.accuracy import classes
from funcrobust.core.evaluation.adversary import Adversary, Run, ignore, succeeds
from funcrobust.core.network.functional import Params, Predict


@dataclass(frozen=True)
class Drafted:
    """An adversary that searches with ``draft(predict)``, and searches again where that misled it.

    ``draft`` gives a near network that costs less: the same in bfloat16, say,
    ``lambda predict: autocast(predict, torch.bfloat16)``. What fools the draft alone, because a
    rounding moved the boundary past it, is no success; there, where the search ended early, the
    adversary runs once more on the network itself. Where it fooled neither it is not repeated: a
    draft must be near enough for a search that fails on it to fail. Count the disagreements
    (benchmarks/autoattack.py does).
    """

    adversary: Adversary
    draft: Callable[[Predict], Predict]
    targeted: bool = False
    """Whether y are targets, and success is to be classified as them."""

    def __call__(self, predict: Predict, params: Params, x: Tensor, y: Tensor, run: Run) -> Tensor:
        rough = self.draft(predict)
        found = self.adversary(rough, params, x, y, run)
        fooled = [
            succeeds(classes(network, params, found, batch_size=run.batch_size), y, self.targeted)
            for network in (rough, predict)
        ]
        misled = (fooled[0] & ~fooled[1]).nonzero().squeeze(1)
        if not len(misled):
            return found
        again = run._replace(numbers=run.numbers[misled], advance=ignore)
        return found.index_copy(
            0, misled, self.adversary(predict, params, x[misled], y[misled], again).to(found.dtype)
        )
