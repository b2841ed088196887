"""The loop around the epochs of any iterative solver: history, early stopping, checkpoints.

A state is a dict of named arrays; ``step`` maps it to the next one and says what to record. A checkpoint holds
the whole state after an epoch, so a run killed at any moment and resumed gives the bits of one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from eckart.core import store
from eckart.core.csr import kernel_arrays
from eckart.core.replace import locked
from eckart.data.interactions import Interactions
from eckart.recommend.solver import IterativeSolver, Solver, solver_name
from eckart.recommend.validation import Validate

__all__ = ["Callback", "Record", "State", "alone", "fingerprint", "run_epochs"]

State = dict[str, np.ndarray]
Record = dict[str, Any]
Callback = Callable[[Record], None]


def run_epochs(
    solver: IterativeSolver,
    data: Interactions,
    validation: Interactions | None,
    state: State,
    step: Callable[[State], tuple[State, Record]],
    validate: Validate | None,
    *,
    features: Sequence[csr_array] = (),
    callback: Callback | None,
    checkpoint: str | Path | None,
    resume: bool,
) -> tuple[State, list[Record]]:
    """Take up to ``solver.epochs`` steps from `state`.

    Parameters
    ----------
    solver : IterativeSolver
        Its ``early_stopping``, where it has one, ends the run after so many epochs without a better validation value
        and returns the best epoch's state; 0: never, return the last state.
    data, validation : Interactions
        What is fitted and what is validated on: a checkpoint is theirs and the solver's, see `fingerprint`.
    state : dict of ndarray
        Where to start; not used when a checkpoint is resumed.
    step : callable
        ``step(state) -> (state, record)``; the record has at least ``"objective"``.
    validate : callable, optional
        ``validate(state) -> (name, value)`` after each epoch; less is better unless the name says ndcg.
    features : sequence of csr_array
        What else the steps depend on: a checkpoint is theirs, too.
    callback : callable, optional
        Called with each epoch's record, which also goes to the history.
    checkpoint : path, optional
        Directory that keeps the state after the last finished epoch.
    resume : bool
        Go on from the checkpoint; from the start where there is none yet.

    Returns
    -------
    state : dict of ndarray
    history : list of dict
        One record an epoch.

    Raises
    ------
    FloatingPointError
        The objective is not finite.
    ValueError
        The checkpoint is of another run, or in use by one, or is there and `resume` is false.
    """
    with alone(checkpoint):
        identity = "" if checkpoint is None else fingerprint(solver, data, validation, features)
        return _run(solver, identity, state, step, validate, callback, checkpoint, resume)


def _run(
    solver: IterativeSolver,
    identity: str,
    state: State,
    step: Callable[[State], tuple[State, Record]],
    validate: Validate | None,
    callback: Callback | None,
    checkpoint: str | Path | None,
    resume: bool,
) -> tuple[State, list[Record]]:
    epochs, patience = solver.epochs, getattr(solver, "early_stopping", 0)
    history: list[Record] = []
    best, best_loss, waited = state, math.inf, 0
    if checkpoint is not None:
        found = _read_checkpoint(Path(checkpoint), resume, identity, state)
        if found is not None:
            state, best, history, best_loss, waited = found
            if len(history) > epochs:
                raise ValueError(
                    f"{checkpoint} is at epoch {len(history)}, epochs is {epochs}: ask for as many or more"
                )
    while len(history) < epochs and not (patience and waited >= patience):
        state, record = step(state)
        record = {"epoch": len(history) + 1, **record}
        if not math.isfinite(record["objective"]):
            raise FloatingPointError(
                f"epoch {record['epoch']}: the objective is {record['objective']}: raise reg, or scale the ratings down"
            )
        if validate is not None:
            name, value = validate(state)
            record[f"validation_{name}"] = value
            loss = -value if name.startswith("ndcg") else value
            waited += 1
            if loss < best_loss:
                best, best_loss, waited = state, loss, 0
        if not (patience and validate):
            best = state
        history.append(record)
        if checkpoint is not None:
            _write_checkpoint(Path(checkpoint), identity, state, best, history, best_loss, waited)
        if callback is not None:
            callback(dict(record))
    return best, history


@contextmanager
def alone(checkpoint: str | Path | None) -> Iterator[None]:
    """Keep other runs out of a checkpoint directory until this one ends, however it ends."""
    if checkpoint is None:
        yield
        return
    lock = Path(checkpoint) / ".lock"
    lock.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(
                f"{checkpoint} is in use by another run: wait for it, or choose another directory"
            ) from None
        except OSError:  # a file system without locks: runs are then not kept apart
            pass
        yield


def fingerprint(
    solver: Solver, data: Interactions, validation: Interactions | None, features: Sequence[csr_array] = ()
) -> str:
    """Digest of the data and of every setting that the factors after an epoch depend on."""
    settings = dataclasses.asdict(solver) | {"solver": solver_name(solver)}  # type: ignore[call-overload]
    del settings["epochs"], settings["threads"]
    digest = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=16)
    for part in (data, validation):
        if part is None:
            continue
        for array in kernel_arrays(part.matrix):
            digest.update(np.ascontiguousarray(array).data)
        for vocabulary in (part.users, part.items):
            ids = vocabulary.ids
            digest.update("\0".join(ids.tolist()).encode() if vocabulary.is_text else np.ascontiguousarray(ids).data)
    for X in features:
        for array in kernel_arrays(X):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write_checkpoint(
    directory: Path,
    identity: str,
    state: State,
    best: State,
    history: list[Record],
    best_loss: float,
    waited: int,
) -> None:
    config = {
        "identity": identity,
        "history": history,
        "best_loss": None if math.isinf(best_loss) else best_loss,
        "waited": waited,
        "best_is_last": best is state,
    }
    tensors = {"state": state} if best is state else {"best": best, "state": state}
    store.write_directory(directory / f"epoch-{len(history):06d}", "checkpoint", config, tensors, {})
    for old in _checkpoints(directory):
        if int(old.name[6:]) < len(history):
            shutil.rmtree(old, ignore_errors=True)


def _checkpoints(directory: Path) -> list[Path]:
    ours = (p for p in directory.glob("epoch-*") if re.fullmatch(r"epoch-[0-9]{6,}", p.name))
    return sorted(ours, key=lambda p: int(p.name[6:]))


def _read_checkpoint(
    directory: Path, resume: bool, identity: str, like: State
) -> tuple[State, State, list[Record], float, int] | None:
    directory.mkdir(parents=True, exist_ok=True)
    there = _checkpoints(directory)
    if not there:
        return None
    if not resume:
        raise ValueError(f"{directory} holds a checkpoint of an earlier run: resume it, or choose another directory")
    config, tensors, _ = store.read_directory(there[-1], "checkpoint")
    if config.get("identity") != identity:
        raise ValueError(f"{directory} holds a checkpoint of other data or settings: choose another directory")

    def part(name: str) -> State:
        return {key: store.take_tensor(tensors, name, key, a.shape, a.dtype) for key, a in like.items()}

    try:
        state = part("state")
        best = state if config["best_is_last"] else part("best")
        best_loss = math.inf if config["best_loss"] is None else float(config["best_loss"])
        return state, best, list(config["history"]), best_loss, int(config["waited"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{there[-1]} cannot be resumed ({error}): delete it and start again") from None
