"""A pickle read without believing it: nothing is imported, nothing called."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, ClassVar


class PlainUnpickler(pickle._Unpickler):
    """Reads a pickle that nothing is believed in: `find_class` says what its names stand for.

    The unpickler written in Python is used on purpose: a damaged memo index makes the one written
    in C allocate up to 32 GiB. For the same reason bytearrays, which allocate whatever length they
    announce, are not understood. Items are set in dicts alone, and never by a nested tuple, whose
    hash may take for ever; a state is set in what is ``stateful`` alone; what is not, is passed
    over. What builds something of what is there already must `charge` for it.
    """

    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    stateful: ClassVar[tuple[type, ...]] = ()

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings, whatever their bytes
        self._left = 4 * size + 4096

    def charge(self, size: int) -> None:
        """Raise if a pickle makes much more of itself than it is long."""
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it grows to much more than its length")

    def _set(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_named(items))

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set((key, value))

    def _load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _load_dict(self) -> None:
        found = dict(_named(self.pop_mark()))
        self.append(found)  # which pop_mark changes

    def _load_set(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(item for item in items if _is_flat(item))

    def _load_frozenset(self) -> None:
        found = frozenset(item for item in self.pop_mark() if _is_flat(item))
        self.append(found)

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, self.stateful):
            set_state: Any = target.__setstate__  # type: ignore[attr-defined]
            set_state(state)

    dispatch: ClassVar[dict[int, Any]] = {  # the base class's own table, changed
        **{
            code: read
            for code, read in pickle._Unpickler.dispatch.items()
            if code != pickle.BYTEARRAY8[0]
        },
        pickle.SETITEM[0]: _load_setitem, pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict, pickle.ADDITEMS[0]: _load_set,
        pickle.FROZENSET[0]: _load_frozenset, pickle.BUILD[0]: _load_build,
    }  # fmt: skip


def _named(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    pairs = zip(items[::2], items[1::2], strict=True)
    return ((key, value) for key, value in pairs if _is_flat(key))


def _is_flat(key: Any) -> bool:
    several = isinstance(key, tuple) and not any(isinstance(k, tuple | frozenset) for k in key)
    return several or (not isinstance(key, tuple | frozenset) and key.__hash__ is not None)


def flat_items(items: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a pickle that may go into a dict, of a dict or of pairs."""
    pairs = items.items() if isinstance(items, dict) else items
    return [(key, value) for key, value in pairs if _is_flat(key)]
