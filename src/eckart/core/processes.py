"""The processes of one run, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Group", "process_group"]


class Group(NamedTuple):
    """Which process this is, and of how many."""

    rank: int
    world: int


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the processes that torchrun has started; alone where there are none.

    Parameters
    ----------
    device : str
        Of the tensors that are sent: "cpu", or one that begins with "cuda".
    """
    import torch.distributed as dist  # (the base install has no torch)

    ours = not (dist.is_available() and dist.is_initialized())
    if ours and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Group(0, 1)
        return
    if ours:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
