"""A user's own network, named as ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from funcrobust.core.errors import FuncrobustError, one_line


def custom_network(name: str, num_classes: int) -> nn.Module:
    """Import ``package.module:factory`` and return the module it makes.

    The factory is called with ``num_classes`` if its signature takes it, else with nothing. The
    current folder is searched first, as for ``python -m``.

    Raises `FuncrobustError` when the name cannot be imported, is not callable, fails, or
    returns something that is not an ``nn.Module``.
    """
    with _current_folder_first():
        factory = _factory(name)
        try:
            network = factory(num_classes=num_classes) if _takes_classes(factory) else factory()
        except Exception as error:
            raise FuncrobustError(f"{name} failed when called: {_named(error)}") from error
    if not isinstance(network, nn.Module):
        raise FuncrobustError(
            f"{name} must return an nn.Module, but it returned {type(network).__name__}"
        )
    return network


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise FuncrobustError(f"{name!r} is not of the form package.module:factory")
    try:
        value: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code: anything may come
        raise FuncrobustError(f"cannot import {module_name!r}: {_named(error)}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise FuncrobustError(f"{module_name!r} has nothing called {attribute!r}")
        value = getattr(value, part)
    if not callable(value) or isinstance(value, nn.Module):
        raise FuncrobustError(
            f"{name} must be a function or class that returns an nn.Module, "
            f"but it is {type(value).__name__}"
        )
    return value  # type: ignore[no-any-return]


def _takes_classes(factory: Callable[..., Any]) -> bool:
    """Tell whether ``num_classes=`` may be passed, by name or through ``**kwargs``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    return any(
        p.kind is p.VAR_KEYWORD or (p.name == "num_classes" and p.kind is not p.POSITIONAL_ONLY)
        for p in parameters
    )


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()  # noqa: PTH109  (sys.path holds strings)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # a file written a moment ago counts too
    try:
        yield
    finally:
        sys.path.remove(folder)


def _named(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")
