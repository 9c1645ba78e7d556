"""funcrobust: functional adversarial robustness for PyTorch, on torch.func.

A loss is a pure function ``(params, x, y) -> (B,)``; an operator maps losses to losses.

The public names are listed in ``__init__.pyi`` and loaded when first asked for, so that the
command line can answer ``--help`` without importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
