"""What is handed in by mistake, refused where it is handed in, with what was meant.

Every function here looks at types and shapes alone: it costs nothing, waits for no device and
leaves no trace in compiled code. The roles are those of the house: a `Predict` gives logits, a
`Loss` is built of it, a `Ball` says where to go, a `Perturbation` or an `Attack` goes there.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch

from funcrobust.core.errors import FuncrobustError, as_number


def require_predict(predict: Any) -> None:
    """Raise unless this can be a ``(params, x) -> logits``."""
    if isinstance(predict, nn.Module):
        raise FuncrobustError(
            "a loss takes a function (params, x) -> logits: pass functionalize(module).predict"
        )
    if not callable(predict):
        own = ": pass its .predict" if hasattr(predict, "predict") else ""
        raise FuncrobustError(
            f"a loss takes a function (params, x) -> logits, not a {_kind(predict)}{own}"
        )
    if not _takes(predict, 2) and _takes(predict, 3):
        raise FuncrobustError(
            "the network's function (params, x) -> logits is wanted here, model.predict, and this "
            "one takes (params, x, y), as a loss does"
        )


def require_loss(loss: Any) -> None:
    """Raise unless this can be a ``(params, x, y) -> (B,)``."""
    wanted = "a loss (params, x, y) -> (B,) is wanted here"
    if isinstance(loss, nn.Module):
        raise FuncrobustError(
            f"{wanted}, not a network: fr.cross_entropy(fr.functionalize(module).predict)"
        )
    if hasattr(loss, "predict") and not callable(loss):
        raise FuncrobustError(f"{wanted}, not a network: fr.cross_entropy(model.predict)")
    if hasattr(getattr(loss, "__self__", None), "predict_train"):
        raise FuncrobustError(f"{wanted}, not logits: fr.cross_entropy(model.{loss.__name__})")
    if not callable(loss) or _is_ball(loss):
        raise FuncrobustError(f"{wanted}, such as fr.cross_entropy(predict), not {_said(loss)}")


def require_ball(ball: Any) -> None:
    """Raise unless this has what a ball has."""
    if not _is_ball(ball):
        members = ("project", "steepest", "sample", "differentiable")
        missing = [name for name in members if not hasattr(ball, name)]
        if len(missing) < len(members):
            raise FuncrobustError(
                f"a ball has {', '.join(members)}, and {_said(ball)} lacks {', '.join(missing)}"
            )
        example = f"fr.linf({ball})" if isinstance(ball, int | float) else "fr.linf(8 / 255)"
        raise FuncrobustError(f"a ball is wanted here, such as {example}, not {_said(ball)}")


def require_perturbation(perturbation: Any) -> None:
    """Raise unless this can be a perturbation: of a ball, say what makes one of it."""
    if _is_ball(perturbation):
        raise FuncrobustError(
            f"an attack is wanted here, and {perturbation} is a ball alone: fr.rs_fgsm(ball), "
            "fr.pgd_k(ball), or fr.pgd(loss, ball, step_size=, steps=)"
        )
    if _parameters(perturbation)[:1] == ["ball"]:
        name = perturbation.__name__
        raise FuncrobustError(f"an attack is wanted here, and {name} builds one: fr.{name}(ball)")
    if not callable(perturbation):
        raise FuncrobustError(
            "an attack is wanted here, such as fr.rs_fgsm(fr.linf(8 / 255)), not "
            f"{_said(perturbation)}"
        )


def require_derivative(derivative: Any) -> None:
    """Raise unless this takes what a `Derivative` takes, as far as its signature tells."""
    if not callable(derivative) or not _takes(derivative, 6):
        name = getattr(derivative, "__name__", "")
        hint = f": call it, fr.{name}(...)" if name else ""
        raise FuncrobustError(
            "derivative is a value such as fr.adjoint() or fr.truncated(4), not "
            f"{name or repr(derivative)}{hint}"
        )


def require_objective(objective: Any) -> None:
    """Raise where this is a loss, (params, x, y), which must be lifted first."""
    if not callable(objective) or _parameters(objective)[1:2] == ["x"]:
        raise FuncrobustError(
            "an update differentiates an objective (params, buffers, *batch): fr.objective(loss) "
            "makes one of a loss, fr.training_objective(model, compose) of several"
        )


def require_adversary(adversary: Any) -> None:
    """Raise unless this takes what an adversary takes, as far as its signature tells."""
    of_training = hasattr(adversary, "start") and hasattr(adversary, "perturb")
    if callable(adversary) and not of_training and _takes(adversary, 5):
        return
    raise FuncrobustError(
        "an adversary is a function (predict, params, x, y, run) -> x̂, such as "
        "evaluation.Pgd(ball, step_size); evaluation.adversary_of(attack, fr.log_odds) makes one "
        f"of an Attack; this is {_said(adversary)}"
    )


def require_labels(y: Any, shape: torch.Size) -> None:
    """Raise unless y are classes of this shape, (B,) of logits (B, C)."""
    if not isinstance(y, Tensor):
        raise FuncrobustError(f"labels are a torch.Tensor of classes, not {_said(y)}")
    if y.dtype not in (torch.int64, torch.int32):
        raise FuncrobustError(f"labels are classes, int64, and these are {y.dtype}: y.long()")
    if y.shape != shape:
        shares = ": y.argmax(-1), or probabilities, y.float()" if y.ndim > len(shape) else ""
        raise FuncrobustError(
            f"labels are one class an example, {tuple(shape)}, and these have shape "
            f"{tuple(y.shape)}{shares}"
        )


def require_tensor(x: Any) -> None:
    """Raise unless this is a tensor."""
    if not isinstance(x, Tensor):
        raise FuncrobustError(f"images are a torch.Tensor, not {_said(x)}")


def is_tracked(x: Tensor) -> bool:
    """Tell whether a reverse derivative, of autograd or any ``torch.func`` transform, follows x."""
    while not x.requires_grad and _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.requires_grad


def require_number(name: str, value: Any) -> float:
    """Return a number as a float; raise where it is none, or one that is being differentiated.

    What is kept as a number has no derivative: a silent zero would be wrong.
    """
    if isinstance(value, Tensor) and is_tracked(value):
        raise FuncrobustError(
            f"{name} is being differentiated, and is kept as a number, without a derivative: "
            ".detach() it"
        )
    return as_number(name, value)


def _takes(function: Any, count: int) -> bool:
    """Tell whether a function can be called with so many arguments, as far as one can know."""
    if torch.compiler.is_compiling():
        return True
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it has no signature to be read
        return True
    return True


def _parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters, none of what is no function."""
    if torch.compiler.is_compiling() or not inspect.isfunction(function):
        return []
    return list(inspect.signature(function).parameters)


def _is_ball(value: Any) -> bool:
    return hasattr(value, "project") and hasattr(value, "steepest")


def _kind(value: Any) -> str:
    return type(value).__name__


def _said(value: Any) -> str:
    """Say what something is, in a few words."""
    short = isinstance(value, int | float | str) and len(repr(value)) < 40
    return repr(value) if short else f"a {_kind(value)}"
