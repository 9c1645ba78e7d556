"""A function on two processes that are a group, over gloo: what it returns on each.

As a program under torchrun, commands one after another: ``two_processes.py "evaluate NET" ...``.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from funcrobust.core.shards import Shard


def on_two(function: Callable[[Shard], Any]) -> list[Any]:
    """Call ``function`` (a module's own, or a partial of one) with each process's shard."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
    ):
        calls = [pool.submit(_one, function, rank, f"{folder}/group") for rank in range(2)]
        return [call.result(timeout=100) for call in calls]


def _one(function: Callable[[Shard], Any], rank: int, file: str) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        return function(Shard(rank, 2, dist.group.WORLD.group_name))
    finally:
        dist.destroy_process_group()


def main() -> None:
    from funcrobust import cli

    dist.init_process_group("gloo")
    for words in sys.argv[1:]:
        try:
            cli.main(words.split())
        except SystemExit as stop:
            if stop.code:
                raise


if __name__ == "__main__":
    main()
