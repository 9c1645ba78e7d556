"""What a flag's value can name: public functions of the core, found in text, without torch.

The stub ``funcrobust/__init__.pyi`` lists the public names and their modules. A function that is
public and gives an `Attack` is an attack that ``--attack`` takes: nothing else needs to know of it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from funcrobust.running.options import Acts, Options, options_of

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Function:
    """A public function: where it is, and what it takes."""

    name: str
    module: str
    parameters: tuple[str, ...]
    required: frozenset[str]
    """The parameters without a default."""

    def called(self, **offered: Any) -> Any:
        """Call it with those of the offered values that are its parameters.

        None leaves a parameter with a default to it.
        """
        taken = {
            name: offered[name]
            for name in self.parameters
            if name in offered and (offered[name] is not None or name in self.required)
        }
        return getattr(import_module(self.module), self.name)(**taken)


@dataclass(frozen=True)
class ParameterOf(Acts):
    """The option is a parameter of the function that another option names."""

    parameter: str


def parameter_of(
    field: str, functions: Callable[[], Mapping[str, Function]], parameter: str
) -> ParameterOf:
    """Let an option act only where the function that ``field`` names has the parameter."""

    def takers() -> list[str]:
        return [name for name, function in functions().items() if parameter in function.parameters]

    def needs(options: Options) -> str:
        flag = options_of(type(options))[field].flag
        return f"it goes with {flag} {' or '.join(takers())}"

    return ParameterOf(lambda options: getattr(options, field) in takers(), needs, parameter)


def parameters(options: Options) -> dict[str, Any]:
    """Return the options that are parameters of the function named, by the parameters' names."""
    return {
        mark.parameter: getattr(options, name)
        for name, option in options_of(type(options)).items()
        for mark in option.marks
        if isinstance(mark, ParameterOf) and mark.when(options)
    }


@cache
def functions(within: str, gives: str) -> dict[str, Function]:
    """Return the public functions of a module or folder that give one type, by their flag's value.

    ``functions("core.attacks", "Attack")`` has ``"rs-fgsm"``; the order is the stub's.
    """
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    found = {}
    for node in stub.body:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if module != within and not module.startswith(f"{within}."):
            continue
        defined = _defined(module)
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            function = defined.get(alias.name)
            if function is not None and function.returns and ast.unparse(function.returns) == gives:
                flag = alias.name.replace("_", "-")
                found[flag] = _function(function, f"{PACKAGE.name}.{module}")
    return found


def function(module: str, name: str) -> Function:
    """Return a function of a module that need not be public."""
    return _function(_defined(module)[name], f"{PACKAGE.name}.{module}")


def _defined(module: str) -> dict[str, ast.FunctionDef]:
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _function(node: ast.FunctionDef, module: str) -> Function:
    given = node.args
    placed = [a.arg for a in (*given.posonlyargs, *given.args)]
    named = [a.arg for a in given.kwonlyargs]
    required = placed[: len(placed) - len(given.defaults)]
    required += [n for n, d in zip(named, given.kw_defaults, strict=True) if d is None]
    return Function(node.name, module, (*placed, *named), frozenset(required))


def summary(path: Path) -> str:
    """Return the first line of a module's docstring (a folder's is its ``__init__.py``'s)."""
    path = path / "__init__.py" if path.is_dir() else path
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
