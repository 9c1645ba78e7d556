"""What a flag's value can name: public functions of the core, found in text, without torch.

The stub ``funcrobust/__init__.pyi`` lists the public names and their modules. A function that is
public and gives an `Attack` is an attack that ``--attack`` takes: nothing else needs to know of it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Function:
    """A public function: where it is, and what it takes."""

    name: str
    module: str
    parameters: tuple[str, ...]
    required: frozenset[str]
    """The parameters without a default."""

    def called(self, offered: Mapping[str, Any]) -> Any:
        """Call it with those of the offered values whose names are its parameters."""
        function = getattr(import_module(self.module), self.name)
        return function(**{p: offered[p] for p in self.parameters if p in offered})


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
