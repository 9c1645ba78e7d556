"""Checkpoints: ours, safetensors with a card inside; and those of other libraries, in and out."""

from funcrobust.checkpoints.card import Card, renewed
from funcrobust.checkpoints.foreign import read_foreign
from funcrobust.checkpoints.format import read
from funcrobust.checkpoints.loading import load
from funcrobust.checkpoints.locate import resolve, shipped
from funcrobust.checkpoints.saving import save
from funcrobust.checkpoints.state import load_state, save_state, step_of
from funcrobust.checkpoints.zoo import is_zoo

__all__ = [
    "Card",
    "is_zoo",
    "load",
    "load_state",
    "read",
    "read_foreign",
    "renewed",
    "resolve",
    "save",
    "save_state",
    "shipped",
    "step_of",
]
