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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from funcrobust.core.errors import FuncrobustError
from funcrobust.running.marks import Acts
from funcrobust.running.option import options_of
from funcrobust.running.options import Options

STUB = Path(__file__).resolve().parent.parent / "__init__.pyi"


@dataclass(frozen=True)
class Function:
    """A public function: where it is, and what it takes."""

    name: str
    module: str
    parameters: tuple[str, ...]
    required: frozenset[str]
    """The parameters without a default."""
    about: str
    """Its docstring and its module's."""

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


def functions(within: str, gives: str) -> dict[str, Function]:
    """Return the public functions of a module or folder that give one type, by their flag's value.

    ``functions("core", "Attack")`` has ``"rs-fgsm"``; the order is the stub's.
    """
    found = {}
    for module, name in _public(STUB):
        inside = module == within or module.startswith(f"{within}.")
        node = _defined(module).get(name) if inside else None
        if node is not None and node.returns and ast.unparse(node.returns) == gives:
            found[name.replace("_", "-")] = _function(node, module)
    return found


ALIASES = {"fgsm": "rs-fgsm", "pgd": "pgd-k"}
"""Other names of attacks: the document family's, and the one that everybody uses."""


def attacks() -> dict[str, Function]:
    """Return what training takes for an attack, by all its names."""
    found = functions("core", "Attack")
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def function(module: str, name: str) -> Function:
    """Return a function of a module of ours that need not be public."""
    return _function(_defined(module)[name], module)


def files_in(folder: str) -> tuple[str, ...]:
    """Return the names of the modules in a folder of ours, in order."""
    paths = STUB.parent.joinpath(folder).glob("[!_]*.py")
    return tuple(sorted(path.stem for path in paths))


def summary(module: str) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(_parsed(module)) or "").partition("\n")[0]


@cache
def _public(stub: Path) -> tuple[tuple[str, str], ...]:
    """Modules and names that the stub imports."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return tuple((node.module or "", alias.name) for node in imports for alias in node.names)


@cache
def _defined(module: str) -> dict[str, ast.FunctionDef]:
    return {
        n.name: n for n in _parsed(f"funcrobust.{module}").body if isinstance(n, ast.FunctionDef)
    }


@cache
def _parsed(module: str) -> ast.Module:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise FuncrobustError(f"there is no module {module}")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _function(node: ast.FunctionDef, module: str) -> Function:
    given = node.args
    placed = [a.arg for a in (*given.posonlyargs, *given.args)]
    named = [a.arg for a in given.kwonlyargs]
    required = placed[: len(placed) - len(given.defaults)]
    required += [n for n, d in zip(named, given.kw_defaults, strict=True) if d is None]
    parsed = _parsed(f"funcrobust.{module}")
    about = "\n".join(ast.get_docstring(one) or "" for one in (node, parsed))
    return Function(
        node.name, f"funcrobust.{module}", (*placed, *named), frozenset(required), about
    )
