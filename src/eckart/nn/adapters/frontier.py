"""The trade of fine-tuning: what is learned against what is forgotten, with all weights and with updates of a rank.

One point of a method says little: with a smaller learning rate it learns less and forgets less. So every method is run
at several, with the same examples in the same order, and compared where it learned as much as another.

Source: Biderman et al. 2024, "LoRA learns less and forgets less".
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eckart.nn.adapters.examples import Example, pack
from eckart.nn.adapters.finetune import check_windows, finetune, steps_of
from eckart.nn.adapters.learned import learned
from eckart.nn.adapters.training import adapt
from eckart.nn.calibrate import Progress
from eckart.nn.language import load_model
from eckart.nn.weights import Weights

__all__ = ["Run", "at_equal_learning", "figure_of", "runs_of", "trade"]

_FILE, _STATE = "runs.jsonl", "training.safetensors"


class Run(NamedTuple):
    """A way to tune."""

    rank: int | None  # None: all weights
    lr: float

    @property
    def method(self) -> str:
        """What a reader calls it."""
        return "all weights" if self.rank is None else f"rank {self.rank}"


def runs_of(ranks: Iterable[int], lrs: Iterable[float], full_lrs: Iterable[float]) -> list[Run]:
    """Give every rank at every rate, and all weights at theirs.

    Examples
    --------
    >>> [run.method for run in runs_of([4], [1e-3, 1e-4], [1e-5])]
    ['rank 4', 'rank 4', 'all weights']
    """
    lrs = list(lrs)
    return [Run(rank, lr) for rank in ranks for lr in lrs] + [Run(None, lr) for lr in full_lrs]


def trade(
    base: str | os.PathLike[str],
    examples: Sequence[Example],
    tests: Sequence[Example],
    known: torch.Tensor,
    runs: Sequence[Run],
    folder: str | os.PathLike[str],
    *,
    alpha: float = 32.0,
    epochs: int = 1,
    batch: int = 8,
    context: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Tune a model in several ways, and measure each on a task and on a text that the base knew.

    A run's row is written as soon as it is there; what is there already is not run again.

    Parameters
    ----------
    base : path
        Directory of a causal language model.
    examples, tests : sequence of Example
        To learn from, and to measure on.
    known : Tensor of shape (windows, context)
        Tokens of a text.
    runs : sequence of Run
    folder : path
        Gets the rows, runs.jsonl, and what a killed run goes on from.
    alpha, epochs, batch, context, seed
        See `eckart.nn.adapters.training.train_model`; no run validates, none stops early.
    progress : callable, optional
        Called with a stage, steps done and steps in all.

    Returns
    -------
    list of dict
        The base first: ``method``, ``rank``, ``lr``, ``loss``, ``accuracy`` where there is one, ``known_loss``, its
        ``rise`` above the base's, ``trained_numbers`` and ``seconds``. Of a run whose numbers left the finite ones only
        the first three.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        The folder has a runs.jsonl of something else; no such model, or nothing that fits.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    windows, _ = pack(examples, context)
    read = hashlib.sha256(repr((list(examples), list(tests))).encode() + known.numpy().tobytes()).hexdigest()
    facts = {"base": Weights(base).fingerprint(), "data": read, "alpha": alpha, "epochs": epochs}
    facts |= {"batch": batch, "context": context, "seed": seed}
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    there = _read(folder / _FILE)
    rows = {row["run"]: row for row in there if row["identity"] == identity}
    steps = steps_of(len(windows.tokens), batch, epochs)

    def tuned(run: Run | None, name: str, told: Progress) -> dict[str, Any]:
        network, parameters, started = load_model(base).requires_grad_(False), {}, time.perf_counter()
        check_windows(network, context)
        if run is not None:
            if run.rank is None:
                parameters = dict(network.requires_grad_(True).named_parameters())
            else:
                parameters = adapt(network, windows.rows(slice(1)), rank=run.rank, alpha=alpha, seed=seed)
            finetune(
                network,
                parameters,
                windows,
                run.lr,
                epochs=epochs,
                batch=batch,
                seed=seed,
                checkpoint=folder / _STATE,
                run=f"{identity} {name}",
                progress=lambda done, _, loss: told(f"loss {loss:.3g}, step", done, steps),
            )
        seconds = time.perf_counter() - started
        return {
            **{"method": "base" if run is None else run.method, "rank": run and run.rank, "lr": run and run.lr},
            **learned(network, tests, known, context, progress=told),
            **{"trained_numbers": sum(x.numel() for x in parameters.values()), "seconds": round(seconds, 1)},
        }

    names = {"base": None, **{f"{run.method}, {run.lr:g}": run for run in runs}}
    for place, (name, run) in enumerate(names.items()):
        if name in rows:
            continue
        stage = f"{place} of {len(runs)}, {name}: "
        told = partial(_told, progress, stage)
        try:
            found = tuned(run, name, told)
        except ValueError as error:
            if "not finite" not in str(error) or run is None:
                raise
            found = {"method": run.method, "rank": run.rank, "lr": run.lr}
        if run and not math.isfinite(found.get("loss", 0.0) + found.get("known_loss", 0.0)):
            found = {name: found[name] for name in ("method", "rank", "lr")}
        if "known_loss" in found:
            before = rows["base"]["known_loss"] if run else found["known_loss"]
            found["rise"] = found["known_loss"] - before
        rows[name] = {"run": name, "identity": identity, **found}
        there.append(rows[name])
        part = folder / f"{_FILE}.part"
        part.write_text("".join(json.dumps(row) + "\n" for row in there), "utf-8")
        os.replace(part, folder / _FILE)  # whole, whenever it is killed
        (folder / _STATE).unlink(missing_ok=True)
        gc.collect()  # before the next model is loaded
    return [{k: v for k, v in rows[name].items() if k not in ("run", "identity")} for name in names]


def _told(progress: Progress | None, stage: str, what: str, done: int, total: int) -> None:
    if progress:
        progress(stage + what, done, total)


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of ours."""
    if not file.is_file():
        return []
    try:
        rows: list[Any] = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, dict) and {"run", "identity", "method"} <= row.keys() for row in rows):
        raise FileExistsError(f"{file} is damaged or of something else: choose a new name, or delete it")
    return rows


def figure_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Say which figure tells how much was learned, and whether more of it is better."""
    return ("accuracy", True) if all("accuracy" in row for row in rows if "loss" in row) else ("loss", False)


def at_equal_learning(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare methods where each learned at least as much as the one that learned least at its best.

    Parameters
    ----------
    rows : sequence of mapping
        See `trade`.

    Returns
    -------
    list of dict
        By method: ``best``, its row that learned most, and ``equal``, of its rows that learned at least as much as
        every method can, the one that forgot least.

    Examples
    --------
    >>> rows = [{"method": "rank 4", "accuracy": 0.8, "rise": 0.1}, {"method": "rank 4", "accuracy": 0.7, "rise": 0.0}]
    >>> rows += [{"method": "all", "accuracy": 0.9, "rise": 0.5}, {"method": "all", "accuracy": 0.85, "rise": 0.2}]
    >>> [(x["method"], x["best"]["rise"], x["equal"]["rise"]) for x in at_equal_learning(rows)]
    [('rank 4', 0.1, 0.1), ('all', 0.5, 0.2)]
    """
    name, more = figure_of(rows)
    tuned = [row for row in rows if row["method"] != "base" and name in row]
    if not tuned:
        return []
    methods = list(dict.fromkeys(row["method"] for row in tuned))

    def gain(row: Mapping[str, Any]) -> float:
        return row[name] if more else -row[name]

    best = {
        m: max((row for row in tuned if row["method"] == m), key=lambda row: (gain(row), -row["rise"])) for m in methods
    }
    level = min(map(gain, best.values()))
    enough = {m: [row for row in tuned if row["method"] == m and gain(row) >= level] for m in methods}
    return [{"method": m, "best": best[m], "equal": min(enough[m], key=lambda row: row["rise"])} for m in methods]
