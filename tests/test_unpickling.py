"""The unpickler that believes nothing: plain values, and nothing set where it was not meant."""

from __future__ import annotations

import io
import pickle

import pytest

from funcrobust.unpickling import PlainUnpickler


class Kept:
    """What may have a state."""

    def __setstate__(self, state):
        self.state = state


class Left(Kept):
    """What may not: Tensor.__setstate__ takes a storage and sizes, and believes them."""


class Reader(PlainUnpickler):
    stateful = (Kept,)

    def find_class(self, module, name):
        return {"Kept": Kept, "Left": type("Left", (), {"__setstate__": Kept.__setstate__})}[name]


def unpickled(data):
    return Reader(io.BytesIO(data), len(data)).load()


def test_a_state_is_set_where_that_is_meant_alone():
    state = b"\x80\x02cm\n%s\n)\x81K\x07b."
    assert unpickled(state % b"Kept").state == 7
    assert not hasattr(unpickled(state % b"Left"), "state")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_they_were(protocol):
    values = [1, -(2**70), 1.5, "ψ", None, True, [1, [2]], (1, 2, 3, 4), {"a": {"b": (1,)}, 3: 4},
              {(1, "x"): 2}, {1, 2}, frozenset("ab"), b"raw", [{}], [[]] * 3]  # fmt: skip
    if protocol < 3:  # sets and bytes are spelled by functions there
        values = [v for v in values if not isinstance(v, bytes | set | frozenset)]
    elif protocol < 4:
        values = [v for v in values if not isinstance(v, set | frozenset)]
    assert unpickled(pickle.dumps(values, protocol)) == values


def test_keys_that_take_for_ever_are_left_out():
    assert unpickled(pickle.dumps({"a": 1, ((1,),): 2, (frozenset([1]),): 3})) == {"a": 1}


def test_items_are_set_in_dicts_alone():
    assert unpickled(b"\x80\x02]K\x00K\x01s.") == []
    assert unpickled(b"\x80\x04](K\x01\x90.") == []
