"""Checkpoints: ours, safetensors with a card inside; and those of other libraries, in and out."""

from funcrobust.checkpoints.foreign import read_foreign
from funcrobust.checkpoints.ours import (
    Card,
    load,
    load_state,
    read,
    resolve,
    save,
    save_state,
    shipped,
)

__all__ = [
    "Card",
    "load",
    "load_state",
    "read",
    "read_foreign",
    "resolve",
    "save",
    "save_state",
    "shipped",
]
