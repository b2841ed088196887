"""How fast language models read and write, and what memory they take, side by side.

Each model has a process of its own, so that its peak of memory is its own. The processes take turns, one round after
another, and only one computes at a time: what else the machine does meets all of them alike, and medians compare.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from eckart.nn.language import check_device, load_model
from eckart.nn.weights import Weights

__all__ = ["Speed", "measure_speed"]


class Speed(NamedTuple):
    """Medians of one model at one batch size."""

    model: str
    batch: int
    read: float  # tokens a second, of all texts together, before the first new one
    written: float  # new tokens a second, of all texts together, after the first
    weight_bytes: int
    peak_bytes: int  # of the process, loading and smaller batches before it included; on a GPU of its memory


def measure_speed(
    models: Sequence[str | os.PathLike[str]],
    batches: Sequence[int] = (1, 8),
    *,
    context: int = 128,
    new: int = 32,
    rounds: int = 5,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Speed]:
    """Measure causal language models, compressed or not, in float32 and in turns.

    Parameters
    ----------
    models : sequence of path
    batches : sequence of int
        How many texts at once; from small to large, for memory's sake.
    context, new : int
        Tokens that are read, at least 1, then written one by one, at least 2, greedily and with the model's cache.
        Which ones they are makes no difference.
    rounds : int
        Turns a model has, at least 1; one more goes before them, and does not count.
    device : str
        Of torch, for example "cuda".
    progress : callable, optional
        Called with a model, turns done and turns in all.

    Returns
    -------
    list of Speed
        Batches in the order given, models within them.

    Raises
    ------
    FileNotFoundError, ValueError
        An argument out of range, or a model that cannot be loaded.
    """
    if context < 1 or new < 2 or rounds < 1 or not batches or min(batches) < 1:
        got = f"context {context}, new {new}, rounds {rounds} and batches {list(batches)}"
        raise ValueError(f"got {got}, expected at least 1, 2, 1 and 1")
    check_device(device)
    found, names, done = [], [os.fspath(model) for model in models], 0
    for name in names:
        Weights(name)  # refuses what is none, before any process is started
    with ExitStack() as held:
        workers = [held.enter_context(_worker(name, device)) for name in names]
        sizes = [_answer(worker) for worker in workers]
        for batch in sorted(batches):
            turns: list[list[tuple[float, float, int]]] = [[] for _ in names]
            for _ in range(rounds + 1):
                for name, worker, mine in zip(names, workers, turns, strict=True):
                    worker.send((batch, context, new))
                    mine.append(_answer(worker))
                    done += 1
                    if progress:
                        progress(f"{name}, batch {batch}", done, len(batches) * (rounds + 1) * len(names))
            for name, size, mine in zip(names, sizes, turns, strict=True):
                read, written = (statistics.median(turn[i] for turn in mine[1:]) for i in (0, 1))
                rates = (batch * context / read, batch * (new - 1) / written)
                found.append(Speed(name, batch, *rates, size, max(turn[2] for turn in mine)))
    return found


def _answer(worker: Connection) -> Any:
    try:
        answer = worker.recv()
    except EOFError:
        raise ValueError("a model's process ended, most likely for want of memory: choose a smaller batch") from None
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


@contextmanager
def _worker(model: str, device: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")  # fresh: nothing of this process counts as its memory
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, model, device, torch.get_num_threads()), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        process.kill()


@torch.inference_mode()
def _serve(asked: Connection, folder: str, device: str, threads: int) -> None:
    """Load a model and take turns until nobody asks any more."""
    torch.set_num_threads(threads)
    try:
        model = load_model(folder).to(device)
        asked.send(sum(x.nbytes for x in {x.data_ptr(): x for x in (*model.parameters(), *model.buffers())}.values()))
        while True:
            asked.send(_turn(model, device, *asked.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except (ValueError, OSError, RuntimeError) as error:
        asked.send(" ".join(str(error).split())[:300])


def _turn(model: Any, device: str, batch: int, context: int, new: int) -> tuple[float, float, int]:
    """Seconds to read, seconds to write, peak bytes so far."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (batch, context), generator=generator).to(device)
    cuda = torch.device(device).type == "cuda"

    def now() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    out = model(tokens, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    read = now()
    for _ in range(new - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
    written = now()
    if cuda:
        return read - started, written - read, torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return read - started, written - read, peak if sys.platform == "darwin" else peak * 1024
