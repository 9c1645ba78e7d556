"""Weights in other people's ``.pt`` files, read without running anything in them.

A pickle is a program: reading one the ordinary way calls whatever functions it names. Here every
global a pickle asks for is either one of a few tensor builders written below, or an inert
placeholder; nothing is imported and nothing foreign is called. So a file that tries to run code
is read as if its code were not there.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funcrobust.checkpoints.format import DTYPES
from funcrobust.core.errors import FuncrobustError, one_line
from funcrobust.reading import read_file
from funcrobust.unpickling import PlainUnpickler, flat_items

# The last is what robustbench takes of files that hold a "best" one too.
_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net", "network", "last")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch's format before 1.6 begins with it


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in a PyTorch or plain pickle file, by their names in the bare network.

    Takes torch's zip and pre-1.6 formats and plain pickles, with tensors at the top or under
    ``model``, ``state_dict`` and the like. The prefixes of ``DataParallel``, ``torch.compile``
    and robustness's ``AttackerModel`` are stripped; of the latter, the attacker's second copy of
    the network is dropped, and the normaliser stays as ``normalizer.new_mean`` and
    ``normalizer.new_std``. Tensors come back on the CPU, in the file's order and precision.

    Raises `FuncrobustError` when the file cannot be read or holds no tensors by name.
    """
    path = Path(path)
    data = read_file(path)
    try:
        root = _read_zip(data) if data[:4] == b"PK\x03\x04" else _read_stream(data)
        tensors = _strip_wrappers(_find_state_dict(root))
        _require_affordable(tensors, len(data))
        instead = "" if tensors else _describe(root)
    except Exception as error:  # a broken or hostile pickle can raise anything at all
        reason = one_line(f"{type(error).__name__}: {error}")
        raise FuncrobustError(
            f"{path} is damaged, or is not a PyTorch checkpoint ({reason}): fetch it again, or "
            "write it with torch.save(model.state_dict(), path)"
        ) from error
    if not tensors:
        raise FuncrobustError(
            f"{path} holds no tensors by name ({instead}): write the weights with "
            "torch.save(model.state_dict(), path)"
        )
    return tensors


def _require_affordable(tensors: Mapping[str, Tensor], size: int) -> None:
    """Raise where names that share their values would be much more than the file as copies.

    Tied weights are there twice, and robustness's networks.
    """
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if claimed > 8 * size + 4096:
        raise pickle.UnpicklingError(f"tensors of {claimed} bytes in a file of {size}")


# --- the two containers -------------------------------------------------------------------------


def _read_zip(data: bytes) -> Any:
    """The format since torch 1.6: ``data.pkl``, and each storage as an uncompressed member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if sum(info.file_size for info in archive.infolist()) > len(data):  # members that overlap
            raise pickle.UnpicklingError("members of more bytes than the file has")
        root = min(name for name in members if name.endswith("/data.pkl")).removesuffix("data.pkl")

        def read(name: str) -> bytes:
            if members[name].compress_type != zipfile.ZIP_STORED:  # a compressed one may be a bomb
                raise pickle.UnpicklingError(f"{name} is compressed")
            return archive.read(name)

        if f"{root}byteorder" in members and read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian tensors")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, *_: object) -> Tensor:
            if key not in storages:
                storages[key] = _flat(read(f"{root}data/{key}"), torch.uint8)
            return storages[key].view(dtype)

        content = read(f"{root}data.pkl")
        return _Unpickler(io.BytesIO(content), len(content), storage).load()


def _read_stream(data: bytes, *, nested: bool = False) -> Any:
    """A plain pickle, or the format before torch 1.6: five pickles, then the storages.

    ``nested``: it is a tensor within a plain pickle.
    """
    file = io.BytesIO(data)
    storages: dict[str, Tensor] = {}
    announced = 0

    def storage(
        dtype: torch.dtype, key: str, _location: str, count: int, view: Any = None
    ) -> Tensor:
        nonlocal announced
        if key not in storages:
            announced += count * dtype.itemsize
            if count < 0 or announced > len(data):
                raise pickle.UnpicklingError("storages larger than the file")
            # Filled below: in this format the values come after the objects that use them.
            storages[key] = torch.zeros(count, dtype=dtype)
        flat = storages[key].view(dtype)
        return flat if view is None else flat[view[1] : view[1] + view[2]]

    def load() -> Any:
        return _Unpickler(file, len(data), storage, nested=nested).load()

    first = load()
    if first != _LEGACY_MAGIC:
        return first
    _version, _system, root, keys = load(), load(), load(), load()
    for key in keys:
        flat = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != flat.numel():
            raise pickle.UnpicklingError("a storage of another size than announced")
        raw = file.read(count * flat.dtype.itemsize)
        flat.copy_(_flat(raw, flat.dtype))
    return root


def _flat(raw: bytes, dtype: torch.dtype) -> Tensor:
    if not raw:  # frombuffer refuses empty buffers
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype)


# --- the restricted unpickler -------------------------------------------------------------------


class _Inert(type):
    """A stand-in for a global that is not allowed: a type that is its own result.

    Calling it, making an instance, setting state or items all give or change nothing, whatever
    the arguments. It is a type, not an instance, because pickles make instances of it.
    """

    def __call__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return cls

    def __setitem__(cls, key: object, value: object) -> None:
        pass


def _inert(name: str) -> _Inert:
    def ignore(cls: Any, /, *_args: object, **_kwargs: object) -> Any:
        return cls

    methods = ("__setstate__", "append", "extend", "add", "update")
    return _Inert(name, (), {"__new__": ignore, **{m: classmethod(ignore) for m in methods}})


class _Unpickler(PlainUnpickler):
    """Reads a pickle with nothing but the builders below; what is inert stays so."""

    def __init__(
        self, file: io.BytesIO, size: int, storage: Callable[..., Tensor], *, nested: bool = False
    ) -> None:
        super().__init__(file, size)
        self._storage, self._nested = storage, nested
        self._inert: dict[tuple[str, str], _Inert] = {}

    def find_class(self, module: str, name: str) -> Any:
        torch_like = module == "torch" or module.startswith("torch.")
        if torch_like and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return getattr(torch, name)
        # A fresh function each time: a pickle can set attributes on what it is given.
        if (module, name) in _COPIERS:
            return lambda *args: self._copied(_COPIERS[module, name], *args)
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda raw: self._within(raw)
        if build := _BUILDERS.get((module, name)):
            return lambda *args: build(*args)
        if len(self._inert) > _MOST_NAMES:
            raise pickle.UnpicklingError(f"more than {_MOST_NAMES} foreign names")
        return self._inert.setdefault((module, name), _inert(f"{module}.{name}"))

    def _copied(self, build: Callable[..., Any], *args: Any) -> Any:
        self.charge(sum(len(arg) for arg in args if hasattr(type(arg), "__len__")))
        return build(*args)

    def _within(self, raw: bytes) -> Any:
        """Tensors inside a plain pickle: their storage is a small file of the older format."""
        if self._nested:
            raise pickle.UnpicklingError("a file within a file within a file")
        self.charge(len(raw))
        return _read_stream(raw, nested=True)

    def persistent_load(self, saved: Any) -> Any:
        kind = saved[0].decode() if isinstance(saved[0], bytes) else saved[0]
        if kind == "module":  # the older format's wrapper around a pickled class
            return saved[1]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return self._storage(*saved[1:])


def _tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """View a flat storage as a tensor, after checking that it lies inside."""
    if len(size) > _MOST_AXES:  # their product would take for ever
        raise pickle.UnpicklingError("a tensor of many axes")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (count and last >= flat.numel()):
        raise pickle.UnpicklingError("a tensor outside its storage")
    if count > flat.numel():  # an expanded tensor: a few bytes could claim any amount of memory
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return flat.as_strided(size, stride, offset)


def _tensor_v2(
    flat: Tensor, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise pickle.UnpicklingError("a conjugated or negated tensor")
    return _tensor(flat, offset, size, stride)


def _tensor_v3(
    flat: Tensor,
    offset: int,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    return _tensor_v2(flat.view(dtype), offset, size, stride, grad, hooks, metadata)


def _first(value: Any, *_: object) -> Any:
    return value


_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}

_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda build, _type, args, _state: build(*args),
}

_COPIERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): lambda dims=(): tuple(dims),
    ("collections", "OrderedDict"): lambda items=(): OrderedDict(flat_items(items)),
    ("collections", "defaultdict"): lambda _factory=None, items=(): dict(flat_items(items)),
    # How pickles of protocol 2 spell bytes.
    ("_codecs", "encode"): lambda text, _encoding="latin1": text.encode("latin1"),
}

_MOST_NAMES = 1000
_MOST_AXES = 64


# --- from the file's contents to a bare network's weights ---------------------------------------


def _find_state_dict(root: Any) -> dict[str, Tensor]:
    """Return the tensors by name, from under the usual keys where those hold any."""
    if not isinstance(root, Mapping):
        return {}
    for key in _NESTED_UNDER:
        if nested := _find_state_dict(root.get(key)):
            return nested
    return {
        name: value.detach()
        for name, value in root.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.dtype in DTYPES
    }


def _strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the wrappers around a network, outermost first, for as long as there are any."""
    normalizer = {n: t for n, t in tensors.items() if n.startswith("normalizer.")}
    network = {n: t for n, t in tensors.items() if n not in normalizer}
    if normalizer:  # an AttackerModel, whose network is called model; others may use that name too
        network = {n: t for n, t in network.items() if not n.startswith("attacker.")}
    for prefix in (*_WRAPPERS, "model.") if normalizer else _WRAPPERS:
        if network and all(name.startswith(prefix) for name in network):
            inner = {name.removeprefix(prefix): t for name, t in network.items()}
            return _strip_wrappers({**normalizer, **inner})
    return {**normalizer, **network}


def _describe(root: Any) -> str:
    if isinstance(root, Mapping):
        keys = [str(key)[:40] if isinstance(key, int) else repr(key)[:40] for key in list(root)[:5]]
        return f"a mapping with the keys {', '.join(keys) or 'of nothing'}"
    kind = root if isinstance(root, _Inert) else type(root)
    return f"its content is a {kind.__name__[:80]}"
