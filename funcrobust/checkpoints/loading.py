"""From a file to a network: our own checkpoints, and other people's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from funcrobust import models
from funcrobust.checkpoints.card import Card, renewed
from funcrobust.checkpoints.fingerprint import TOLERANCE, difference, fingerprint
from funcrobust.checkpoints.foreign import read_foreign
from funcrobust.checkpoints.format import KNOWINGLY, check_finite, read, single_precision
from funcrobust.checkpoints.locate import SUFFIX, listing, resolve
from funcrobust.checkpoints.state import read_network, step_of
from funcrobust.checkpoints.zoo import fitted, is_zoo, locate, named, zoo_card
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.data.progress import Progress, silent
from funcrobust.models.flip_averaged import FLIP
from funcrobust.models.registry import is_factory, names_code
from funcrobust.models.robustbench_zoo import ZooEntry, zoo_entry


def load(
    path_or_name: str | Path, *, model: str | None = None, verify: bool = True,
    progress: Progress = silent,
) -> tuple[nn.Module, Card]:  # fmt: skip
    """Return the network of a checkpoint, on the CPU in evaluation mode, and its card.

    Args:
        path_or_name: a ``.safetensors`` file, a run's folder, a name from `shipped`, someone
            else's ``.pt`` file, which is read by `read_foreign`; or ``robustbench:NAME`` or
            ``robustbench:NAME=FOLDER`` for a network of RobustBench's zoo: of the file in that
            library's own cache, fetched if need be, or in FOLDER.
        model: the network's name for `funcrobust.models.build`. Needed for a ``.pt`` file, which
            does not say; and for a checkpoint whose network is a ``package.module:factory``,
            since a file must not choose by itself which code is imported and called. Of a
            checkpoint of NAME it may be NAME-flip, where there is one: the same weights, and the
            mean of the logits of both mirror images. The card is then that network's, and holds no
            figures.
        verify: let the checkpoint prove itself, if its card has the means: the tensors by their
            SHA-256, and the network by its logits at a few fixed images. False is for what was
            changed knowingly. Other libraries' files have no card.
        progress: is told how far a download is, of a network of the zoo whose file is not there.

    The tensors must be exactly the network's, by name and shape. A foreign file's normalisation
    is taken from its ``normalizer``, as robustness writes it, or for the built-in networks from
    ``mu`` and ``sigma``, as robustbench does; or else is `funcrobust.models.build`'s default. Of a
    ``package.module:factory``'s network it is the network's own business: images in [0, 1] go to it
    as they are.

    A file given as one of the zoo's networks takes its names and normalisation as robustbench does.

    Raises `FuncrobustError` if the tensors' names or shapes are not the network's (the first that
    differ are named), if the network does not give the logits its card holds, and as `read` does.
    """
    if is_zoo(path_or_name):
        entry, path = locate(str(path_or_name), progress)
        if model not in (None, entry.model):
            raise FuncrobustError(
                f"{path_or_name} names its network itself, not {model}: leave model= out"
            )
        return _load_zoo(entry, path)
    path = resolve(path_or_name)
    if path.suffix != SUFFIX and model is not None and is_zoo(model):
        return _load_zoo(zoo_entry(model), path)
    if path.suffix != SUFFIX:
        return _load_foreign(path, model)
    tensors, card = _read(path, verify=verify)
    _require_named(path, card, model)
    network = _made(
        card.model, card.num_classes, lambda: build(card), tensors, lambda _: tensors, path
    )
    if verify and card.fingerprint:
        _prove(network, card, path)
    return (network, card) if model in (None, card.model) else _flipped(network, card, path)


def _flipped(network: nn.Module, card: Card, path: Path) -> tuple[nn.Module, Card]:
    """Return the network that looks into the mirror too, by the same weights."""
    card = renewed(replace(
        card, model=card.model + FLIP, metrics={}, sha256="", fingerprint=(), command="",
        notes=f"the weights of {path.name}, and the mean of both mirror images",
    ))  # fmt: skip
    both = build(card)
    both.load_state_dict(network.state_dict())
    return both.eval(), card


def _require_named(path: Path, card: Card, model: str | None) -> None:
    """Raise unless ``model`` is what a checkpoint holds, or nothing where that is no code."""
    if names_code(card.model) and model != card.model:
        instead = f", not {model!r}" if model else ""
        raise FuncrobustError(
            f"{path} needs the code {card.model!r}{instead}: if you trust it, say so with "
            f"--model {shlex.quote(card.model)} (in Python: model={card.model!r})"
        )
    flipped = card.model + FLIP
    if model in (None, card.model) or (model == flipped and flipped in models.names()):
        return
    raise FuncrobustError(f"{path} holds a {card.model}, not a {model}: leave model= out")


def needs_model(path_or_name: str | Path) -> bool:
    """Tell whether `load` wants ``model`` said: no card says it, or one that may not choose code.

    Raises `FuncrobustError` for a file that cannot be read.
    """
    if is_zoo(path_or_name):
        return False
    model = model_of(path_or_name)
    return model is None or names_code(model)


def model_of(path_or_name: str | Path) -> str | None:
    """Return the network that a checkpoint says it is of; None for a file without a card.

    Raises `FuncrobustError` for a file that cannot be read.
    """
    if is_zoo(path_or_name):
        return named(str(path_or_name))[0].model
    card = card_of(path_or_name)
    return None if card is None else card.model


def card_of(path_or_name: str | Path) -> Card | None:
    """Return the card of a checkpoint of ours; None for a file that has none."""
    path = resolve(path_or_name)
    return _read(path, verify=False)[1] if path.suffix == SUFFIX else None


def _read(path: Path, *, verify: bool) -> tuple[dict[str, Tensor], Card]:
    return read_network(path) if step_of(path) is not None else read(path, verify=verify)


def build(card: Card) -> nn.Module:
    """Return the network that a card names, freshly initialised; a factory's code is called."""
    return models.build(
        card.model,
        num_classes=card.num_classes,
        in_channels=card.image_shape[0],
        mean=card.mean,
        std=card.std,
        seed=card.seed,
    )


def _made(
    model: str, classes: int, make: Callable[[], nn.Module], tensors: Mapping[str, Tensor],
    by_its_names: Callable[[nn.Module], Mapping[str, Tensor]], path: Path, *, guessed: str = "",
) -> nn.Module:  # fmt: skip
    """Make a network and fill it, after its sizes were found to be those of the file's tensors.

    ``by_its_names(network)`` are these by the network's names. Ours is first made without memory.
    ``guessed`` says the sizes that nobody gave; see `require_fit`.
    The code of a factory is called once only: it is told no number of classes that no tensor has.
    """
    if names_code(model):  # the zoo's too: it need not know torch's meta device
        largest = max((max(t.shape, default=0) for t in tensors.values() if t.numel()), default=0)
        if classes > max(largest, 10_000):
            raise FuncrobustError(f"{path} says {classes} classes, and no tensor has such a size")
    else:
        try:
            with torch.device("meta"):
                skeleton = make()
                require_fit(skeleton, by_its_names(skeleton), model, path)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise FuncrobustError(
                f"{path}: no {model} has such sizes: {one_line(error)}"
            ) from error
    network = make()
    return fill(network, by_its_names(network), model, path, guessed=guessed)


def _prove(network: nn.Module, card: Card, path: Path) -> None:
    """Raise `FuncrobustError` if a network does not have the logits that its card holds."""
    try:
        off = difference(fingerprint(network, card.image_shape), card.fingerprint)
    except Exception as error:  # a factory's network may raise anything
        found = (
            f"it fails on the card's fixed images ({one_line(f'{type(error).__name__}: {error}')})"
        )
    else:
        if off <= TOLERANCE:
            return
        found = (
            f"at fixed images its logits are off by {off:.2g} of their root mean square, where "
            f"{TOLERANCE:g} is allowed for rounding"
        )
    damaged = "" if card.sha256 else "damaged tensors, or "
    raise FuncrobustError(
        f"{path} does not make the {card.model} it was saved as: {found}: {damaged}another "
        "architecture or normalisation, or changed code; if you changed it knowingly, "
        f"{KNOWINGLY}"
    )


def _load_zoo(entry: ZooEntry, path: Path) -> tuple[nn.Module, Card]:
    tensors = single_precision(read_foreign(path))
    check_finite(tensors, path)
    network = models.build(entry.model)
    return fill(network, fitted(tensors, network), entry.model, path), zoo_card(entry, path)


def _load_foreign(path: Path, model: str | None) -> tuple[nn.Module, Card]:
    tensors = single_precision(read_foreign(path))  # what is no checkpoint is refused first
    if model is None:
        raise FuncrobustError(
            f"{path} does not say which network it is: pass model= (--model), one of "
            f"{', '.join(models.names())} or your own package.module:factory"
        )
    check_finite(tensors, path)
    mean, std = _pop_normalizer(tensors, model)
    channels, classes = _sizes(tensors, model)
    numbers = [_numbers(each, channels, path) for each in (mean, std)]
    if is_factory(model) and mean is None:  # what prepares its images, if any, is in it
        numbers = [[0.0] * channels, [1.0] * channels]
    make = partial(
        models.build, model, num_classes=classes, in_channels=channels, mean=numbers[0],
        std=numbers[1],
    )  # fmt: skip

    def by_its_names(network: nn.Module) -> dict[str, Tensor]:
        # Files from before torch 0.4.1 do not hold the counters, and no logit depends on them.
        state = network.state_dict()
        counters = {n: t for n, t in state.items() if n.endswith("num_batches_tracked")}
        if not isinstance(network, models.Normalized) or "mean" in tensors:
            return {**counters, **tensors}
        inner = {f"net.{name}": tensor for name, tensor in tensors.items()}
        return {**counters, **inner, "mean": network.mean, "std": network.std}

    guessed = f"num_classes={classes}, in_channels={channels}" if is_factory(model) else ""
    network = _made(model, classes, make, tensors, by_its_names, path, guessed=guessed)
    return network, _foreign_card(path, model, network, (channels, classes), mean is not None)


def _sizes(tensors: Mapping[str, Tensor], model: str) -> tuple[int, int]:
    """Return the channels and classes of a file's network: its first layer's, its last one's.

    Which these are, ours say by their names, in whatever order a file has them; of a factory's
    network the file's own order is all there is.
    """
    order = list(tensors)
    if not is_factory(model):
        with torch.device("meta"):
            inner = (name.removeprefix("net.") for name in models.build(model).state_dict())
            order = [n for name in inner for n in (name, f"net.{name}") if n in tensors]
    found = [tensors[name] for name in order]
    channels = next((t.shape[1] for t in found if t.ndim == 4), 3)
    classes = next((t.shape[0] for t in reversed(found) if t.ndim == 2), 10)
    return channels, classes


def _pop_normalizer(tensors: dict[str, Tensor], model: str) -> tuple[Tensor | None, Tensor | None]:
    """Take the normalisation out, by the names of robustness or of robustbench's zoo."""
    own = is_factory(model)  # whose tensors may have these names, too
    zoo = {"mu", "sigma"} <= tensors.keys() and not own
    mean, std = ("mu", "sigma") if zoo else ("normalizer.new_mean", "normalizer.new_std")
    return tensors.pop(mean, None), tensors.pop(std, None)


def _numbers(tensor: Tensor | None, channels: int, path: Path) -> list[float] | None:
    """Return a normalisation as numbers."""
    if tensor is None:
        return None
    if tensor.is_complex() or tensor.numel() != channels:
        raise FuncrobustError(
            f"{path} holds a normalisation that is no {channels} real numbers, one for each channel"
        )
    return [float(value) for value in tensor.double().flatten().tolist()]


def _foreign_card(
    path: Path, model: str, network: nn.Module, sizes: tuple[int, int], normalizer: bool
) -> Card:
    channels, classes = sizes
    size = models.usual_image_size(model)
    layer = network if isinstance(network, models.Normalized) else None
    assumed = "its own" if is_factory(model) else "assumed, the file has none"
    origin = "from the file" if normalizer else assumed
    return Card(
        model=model,
        num_classes=classes,
        image_shape=(channels, size, size),
        mean=tuple(layer.mean.flatten().tolist()) if layer else (0.0,) * channels,
        std=tuple(layer.std.flatten().tolist()) if layer else (1.0,) * channels,
        dataset="unknown",
        notes=f"imported from {path.name}; normalisation {origin}; image size assumed",
    )


def fill(
    network: nn.Module, tensors: Mapping[str, Tensor], model: str, path: Path, *, guessed: str = ""
) -> nn.Module:
    """Load strictly, or say in one line how the tensors differ from the network's.

    Returns the network itself, in evaluation mode. ``guessed`` is as in `require_fit`.
    """
    require_fit(network, tensors, model, path, guessed=guessed)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:  # a number of float64 that is none in float32, say
        raise FuncrobustError(f"{path} does not fit a {model}: {one_line(error)}") from error
    check_finite(network.state_dict(), path)
    return network.eval()


def require_fit(
    network: nn.Module, tensors: Mapping[str, Tensor], model: str, path: Path, *, guessed: str = ""
) -> None:
    """Raise `FuncrobustError` unless the tensors' names and shapes are the network's.

    Nor may one be complex where the network's is real. The first that differ are named, and the
    sizes that were ``guessed``, if any: the network may be the right one, and they wrong.
    """
    expected = network.state_dict()
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    differences = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": misshaped,
        "complex": [
            name
            for name, value in expected.items()
            if name in tensors and tensors[name].is_complex() and not value.is_complex()
        ],
    }
    if any(differences.values()):
        whole = {f"net.{name}" for name in tensors} | {"mean", "std"}
        if isinstance(network, models.Normalized) and whole == expected.keys():
            raise FuncrobustError(
                f"{path} holds the weights of a {model} without what normalises its images: if it "
                "is to have none, give its module the attribute normalized = True; else save "
                "funcrobust.models.Normalized(net, mean, std)"
            )
        said = [f"{len(n)} {what} ({listing(n, 3)})" for what, n in differences.items() if n]
        built = f" built with {guessed}, guessed from the file's tensors" if guessed else ""
        instead = ", or a factory that sets these itself" if guessed else ""
        raise FuncrobustError(
            f"{path} does not hold the weights of a {model}{built}: {'; '.join(said)}: name the "
            f"network it was made with{instead}"
        )
