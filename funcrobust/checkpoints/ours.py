"""Checkpoints: safetensors with a card inside, never half-written, never running code."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from funcrobust import models
from funcrobust.checkpoints.foreign import read_foreign
from funcrobust.core.errors import FuncrobustError, require_count
from funcrobust.files import atomic_write

__all__ = [
    "Card", "load", "load_state", "read", "read_foreign", "resolve", "save", "save_state",
    "shipped",
]  # fmt: skip

_SUFFIX = ".safetensors"
_CARD, _STATE = "funcrobust.card", "funcrobust.state"  # keys of the safetensors metadata


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("funcrobust")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"torch": str(torch.__version__), "funcrobust": own}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Card:
    """What a checkpoint is, how it was made and how it scores.

    ``model`` is a name for `funcrobust.models.build`; ``image_shape`` is (C, H, W); ``mean`` and
    ``std`` have one number a channel, in [0, 1]; ``command`` is the exact command line that made
    it; ``metrics`` are fractions by name, such as ``{"clean": 0.51, "pgd50x10": 0.29}``;
    ``created`` is an ISO date in UTC. ``constraint`` and ``epsilon`` are the threat model it was
    trained against, and is measured against unless told otherwise.

    Raises `FuncrobustError` for a card that could describe no network.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    class_names: tuple[str, ...] = ()
    constraint: str = "linf"
    epsilon: float = 8 / 255
    command: str = ""
    seed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    notes: str = ""
    versions: dict[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise FuncrobustError(f"a card's model must be a name, got {self.model!r}")
        require_count("a card's num_classes", self.num_classes, minimum=1)
        shape = self.image_shape
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise FuncrobustError(f"a card's image_shape must be (C, H, W), got {shape!r}")
        for size in shape:
            require_count("a card's image_shape", size, minimum=1)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != shape[0]:
                raise FuncrobustError(
                    f"a card's {name} must have one number for each of {shape[0]} channels, "
                    f"got {value!r}"
                )
            if not all(isinstance(number, int | float) for number in value):
                raise FuncrobustError(f"a card's {name} must be numbers, got {value!r}")
        for name in ("metrics", "versions"):
            if not isinstance(getattr(self, name), dict):
                raise FuncrobustError(f"a card's {name} must be a dict by name")


# --- checkpoints --------------------------------------------------------------------------------


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Card) -> Path:
    """Write a checkpoint and return its path.

    Args:
        path: where to; ``.safetensors`` is appended if missing, and an existing folder gets
            ``checkpoint.safetensors``. Missing folders are made.
        tensors: parameters and buffers by their ``state_dict`` names, on any device and in any
            memory layout.
        card: embedded in the file, and written beside it as ``<stem>.json`` for people to read.

    Either the whole new file is there afterwards or the old one is untouched.

    Raises `FuncrobustError` for NaN or infinite values and for files that cannot be written.
    """
    path = _destination(path, "checkpoint")
    _check_finite(tensors, path)
    text = _to_json(dataclasses.asdict(card), path)
    atomic_write(path, _serialize(tensors, {"format": "pt", _CARD: text}, path))
    atomic_write(path.with_suffix(".json"), text + "\n")
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], Card]:
    """Return a checkpoint's tensors, on the CPU, and its card.

    Half-precision tensors come back as float32: a network may be shipped in float16.

    Raises `FuncrobustError` for a file that is missing, damaged, without a card, or holds NaN or
    infinite values.
    """
    path = resolve(path)
    if path.suffix != _SUFFIX:
        raise FuncrobustError(
            f"{path} is not a {_SUFFIX} file and has no card: use read_foreign, or "
            "load(path, model=NAME)"
        )
    tensors, metadata = _parse(path)
    if _CARD not in metadata:
        raise FuncrobustError(
            f"{path} has no card inside, so its network is unknown: write it with "
            "funcrobust.checkpoints.save"
        )
    card = _card(metadata[_CARD], path)
    _check_finite(tensors, path)
    return _single_precision(tensors), card


def load(path_or_name: str | Path, *, model: str | None = None) -> tuple[nn.Module, Card]:
    """Return the network of a checkpoint, on the CPU in evaluation mode, and its card.

    Args:
        path_or_name: a ``.safetensors`` file, a run's folder, a name from `shipped`, or someone
            else's ``.pt`` file, which is read by `read_foreign`.
        model: the network's name for `funcrobust.models.build`. Needed for a ``.pt`` file, which
            does not say; and for a checkpoint whose network is a ``package.module:factory``,
            since a file must not choose by itself which code is imported and called.

    The tensors must be exactly the network's, by name and shape. A foreign file's normalisation
    is taken from its ``normalizer``, as robustness writes it, or for the built-in networks from
    ``mu`` and ``sigma``, as robustbench does; or else is `funcrobust.models.build`'s default.

    Raises `FuncrobustError`, with the first differing names, if they are not, and as `read` does.
    """
    path = resolve(path_or_name)
    if path.suffix != _SUFFIX:
        return _load_foreign(path, model)
    tensors, card = read(path)
    if model not in (None, card.model):
        raise FuncrobustError(f"{path} holds a {card.model}, not a {model}: leave model= out")
    if ":" in card.model and model is None:
        raise FuncrobustError(
            f"{path} needs the code {card.model!r}: if you trust it, say so with "
            f"--model {card.model} (in Python: model={card.model!r})"
        )
    return _fill(_build(card), tensors, card.model, path), card


def _build(card: Card) -> nn.Module:
    return models.build(
        card.model,
        num_classes=card.num_classes,
        in_channels=card.image_shape[0],
        mean=card.mean,
        std=card.std,
        seed=card.seed,
    )


def _load_foreign(path: Path, model: str | None) -> tuple[nn.Module, Card]:
    if model is None:
        raise FuncrobustError(
            f"{path} does not say which network it is: pass model=, one of "
            f"{', '.join(models.names())} or your own package.module:factory"
        )
    tensors = _single_precision(read_foreign(path))
    _check_finite(tensors, path)
    mean, std = _pop_normalizer(tensors, model)
    channels = next((t.shape[1] for t in tensors.values() if t.ndim == 4), 3)
    classes = next((t.shape[0] for t in reversed(tensors.values()) if t.ndim == 2), 10)
    network = models.build(
        model,
        num_classes=classes,
        in_channels=channels,
        mean=None if mean is None else mean.flatten().tolist(),
        std=None if std is None else std.flatten().tolist(),
    )
    if isinstance(network, models.Normalized) and "mean" not in tensors:
        tensors = {f"net.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"mean": network.mean, "std": network.std}
    # Files from before torch 0.4.1 do not hold these, and no logit depends on them.
    counters = {n: t for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
    network = _fill(network, {**counters, **tensors}, model, path)
    return network, _foreign_card(path, model, network, (channels, classes), mean is not None)


def _pop_normalizer(tensors: dict[str, Tensor], model: str) -> tuple[Tensor | None, Tensor | None]:
    """Take the normalisation out, by the names of robustness or of robustbench's zoo."""
    zoo = {"mu", "sigma"} <= tensors.keys() and ":" not in model  # a factory's may be its own
    mean, std = ("mu", "sigma") if zoo else ("normalizer.new_mean", "normalizer.new_std")
    return tensors.pop(mean, None), tensors.pop(std, None)


def _foreign_card(
    path: Path, model: str, network: nn.Module, sizes: tuple[int, int], normalizer: bool
) -> Card:
    channels, classes = sizes
    size = models.usual_image_size(model)
    buffers = dict(network.named_buffers())
    origin = "from the file" if normalizer else "assumed, the file has none"
    return Card(
        model=model,
        num_classes=classes,
        image_shape=(channels, size, size),
        mean=tuple(buffers["mean"].flatten().tolist()) if "mean" in buffers else (0.0,) * channels,
        std=tuple(buffers["std"].flatten().tolist()) if "std" in buffers else (1.0,) * channels,
        dataset="unknown",
        notes=f"imported from {path.name}; normalisation {origin}; image size assumed",
    )


def _fill(network: nn.Module, tensors: dict[str, Tensor], model: str, path: Path) -> nn.Module:
    """Load strictly, or say in one line how the tensors differ from the network's."""
    expected = network.state_dict()
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    differences = (
        _some("missing", [name for name in expected if name not in tensors]),
        _some("unexpected", [name for name in tensors if name not in expected]),
        _some("of another shape", misshaped),
    )
    if any(differences):
        raise FuncrobustError(
            f"{path} does not hold the weights of a {model}: {'; '.join(filter(None, differences))}"
            ": name the network it was made with"
        )
    network.load_state_dict(tensors, strict=True)
    return network.eval()


def _some(what: str, found: Sequence[str], limit: int = 3) -> str:
    if not found:
        return ""
    more = ", ..." if len(found) > limit else ""
    return f"{len(found)} {what} ({', '.join(found[:limit])}{more})"


# --- a run's full state -------------------------------------------------------------------------


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write everything a run needs to go on, to the bit, and return the path.

    ``tensors`` are parameters, buffers and optimizer leaves by name, of any precision; ``meta``
    is anything JSON can hold. A folder gets ``state.safetensors``. Atomic, as `save` is; the
    values are not checked.
    """
    path = _destination(path, "state")
    text = _to_json(dict(meta), path)
    atomic_write(path, _serialize(tensors, {"format": "pt", _STATE: text}, path))
    return path


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `save_state` wrote: the same tensors to the bit, on the CPU, and ``meta``.

    Raises `FuncrobustError` for a file that is missing, damaged or not a run's state.
    """
    path = _destination(path, "state")
    tensors, metadata = _parse(path)
    if _STATE not in metadata:
        raise FuncrobustError(
            f"{path} is not the state of a run, so nothing can be resumed from it: give the file "
            "that save_state wrote"
        )
    try:
        meta = json.loads(metadata[_STATE])
    except (ValueError, RecursionError) as error:
        raise FuncrobustError(f"{path} is damaged (its state does not parse: {error})") from error
    return tensors, meta


# --- finding checkpoints ------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """Return the checkpoints that travel with the project, by name."""
    return {p.stem: p for folder in _shipped_folders() for p in sorted(folder.glob(f"*{_SUFFIX}"))}


def _shipped_folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    # Beside an installed package there could be anybody's folder called checkpoints.
    source = (checkout / "checkpoints",) if (checkout / "pyproject.toml").is_file() else ()
    return (*source, package / "_shipped")


def resolve(path_or_name: str | Path) -> Path:
    """Return the file meant by a path, a run's folder or the name of a shipped checkpoint.

    A folder means its ``checkpoint.safetensors``; the suffix may be left out.

    Raises `FuncrobustError` that lists what there is when nothing fits.
    """
    path = Path(path_or_name).expanduser()
    for candidate in (path, Path(f"{path}{_SUFFIX}"), path / f"checkpoint{_SUFFIX}"):
        if os.path.isfile(candidate):  # noqa: PTH113  (Path's own raises on too long a name)
            return candidate
    known = shipped()
    name = str(path_or_name).removesuffix(_SUFFIX)
    if name in known:
        return known[name]
    if os.path.isdir(path):  # noqa: PTH112
        found = _listing(p.name for p in path.iterdir())
        raise FuncrobustError(f"no checkpoint{_SUFFIX} in the folder {path}, which holds {found}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise FuncrobustError(
        f"no checkpoint {str(path_or_name)!r}{hint}: give a path, or one of the shipped ones: "
        f"{_listing(known)}"
    )


def _listing(found: Iterable[str], limit: int = 10) -> str:
    shown = sorted(found)
    more = ", ..." if len(shown) > limit else ""
    return (", ".join(shown[:limit]) or "nothing") + more


# --- bytes and files ----------------------------------------------------------------------------


def _destination(path: str | Path, in_folder: str) -> Path:
    path = Path(path).expanduser()
    if os.path.isdir(path):  # noqa: PTH112
        return path / f"{in_folder}{_SUFFIX}"
    return path if path.suffix == _SUFFIX else Path(f"{path}{_SUFFIX}")


def _serialize(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> bytes:
    # safetensors refuses tensors that share memory or are not contiguous; copies are neither.
    try:
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        return safetensors.torch.save(copies, metadata)
    except (SafetensorError, NotImplementedError, RuntimeError, ValueError) as error:
        raise FuncrobustError(
            f"cannot write {path}: {_one_line(error)}: save plain dense tensors with values"
        ) from error


def _parse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    # Read whole rather than mapped: a resumed run replaces the very file it was read from, which
    # some systems forbid while it is mapped.
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FuncrobustError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise FuncrobustError(
            f"{path} is truncated or not a safetensors file ({_one_line(error)}): copy or train "
            "it again"
        ) from error
    return tensors, header.get("__metadata__", {})


def _single_precision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    half = (torch.float16, torch.bfloat16)
    return {name: t.float() if t.dtype in half else t for name, t in tensors.items()}


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise FuncrobustError(
            f"{path}: {_some('tensors with NaN or infinite values', bad)}: the run diverged, or "
            "the file is damaged; go back to an earlier checkpoint"
        )


def _card(text: str, path: Path) -> Card:
    known = {f.name for f in dataclasses.fields(Card)}  # a later version's card may hold more
    try:
        values: dict[str, Any] = {k: v for k, v in json.loads(text).items() if k in known}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Card(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FuncrobustError(f"{path} has a card that is not one: {_one_line(error)}") from error


def _to_json(value: dict[str, Any], path: Path) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=float)
    except (TypeError, ValueError, RecursionError) as error:
        raise FuncrobustError(
            f"cannot write {path}: what goes with the tensors must be finite numbers, texts, "
            f"lists and dicts ({_one_line(error)})"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
