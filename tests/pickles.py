"""Every way of writing a pickle of tensors, and an object whose pickle runs code."""

from __future__ import annotations

import pickle

import dill
import torch


class Payload:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


WRITERS = {
    "plain": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "plain0": lambda value, path: path.write_bytes(pickle.dumps(value, 0)),
    "plain2": lambda value, path: path.write_bytes(pickle.dumps(value, 2)),
    "dill": lambda value, path: path.write_bytes(dill.dumps(value)),
    "zip": torch.save,
    "zip-dill": lambda value, path: torch.save(value, path, pickle_module=dill),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "legacy-dill": lambda value, path: torch.save(
        value, path, pickle_module=dill, _use_new_zipfile_serialization=False
    ),
}
