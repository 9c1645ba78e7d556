"""funcrobust: functional adversarial robustness for PyTorch, on torch.func.

A loss is a pure function ``(params, x, y) -> (B,)``; an operator maps losses to losses.

The public names are listed in ``__init__.pyi`` and loaded when first asked for, so that the
command line can answer ``--help`` without importing torch.
"""

from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from funcrobust.environment import own_version

        return own_version()
    try:
        return _public(name)
    except AttributeError as error:
        from funcrobust.core.errors import did_you_mean

        if name == "evaluation":
            raise AttributeError("from funcrobust.core import evaluation") from None
        near = "" if name.startswith("_") else did_you_mean(name, __all__)
        raise AttributeError(f"{error}{near}", name=name, obj=error.obj) from None
