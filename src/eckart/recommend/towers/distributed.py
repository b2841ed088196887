"""One fit by several processes, as torchrun starts them: a batch's users are divided, every process keeps all weights.

Gradients are summed by DistributedDataParallel. The first process leads: it alone walks the epochs (history, early
stopping, checkpoints), and says before each of them to go on and from which state; the others follow, and at the end
all have the state that the first one chose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from eckart.core.processes import Group
from eckart.recommend.training import Record, State

__all__ = ["led"]

_STOP, _GO, _FAILED = 0, 1, 2
Step = Callable[[State], tuple[State, Record]]


def led(
    group: Group,
    device: str,
    start: State,
    step: Step,
    run: Callable[[Step], tuple[State, list[Record]]],
) -> tuple[State, list[Record]]:
    """Run on the first process, with the others following.

    Parameters
    ----------
    group : Group
    device : str
        Of the tensors that are sent.
    start : dict of ndarray
        Whose shapes a state has.
    step : callable
        An epoch, which all processes take together.
    run : callable
        ``run(step) -> (state, history)``: the loop around the epochs; called on the first process.

    Raises
    ------
    RuntimeError
        On the others, when the first one has failed.
    """
    if group.world == 1:
        return run(step)

    def send(array: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.array(array)).to(device)
        dist.broadcast(tensor, 0)
        return tensor.cpu().numpy()

    def send_state(state: State) -> State:
        return {name: send(state[name]) for name in start}

    def send_text(text: str) -> str:
        size = int(send(np.array([len(text.encode())]))[0])
        blank = np.frombuffer(text.encode(), np.uint8) if group.rank == 0 else np.zeros(size, np.uint8)
        return send(blank).tobytes().decode()

    if group.rank == 0:

        def go(state: State) -> tuple[State, Record]:
            send(np.array([_GO]))
            return step(send_state(state))

        try:
            state, history = run(go)
        except BaseException:
            send(np.array([_FAILED]))
            raise
        send(np.array([_STOP]))
        return send_state(state), json.loads(send_text(json.dumps(history)))
    while (told := int(send(np.array([_STOP]))[0])) == _GO:
        step(send_state(start))
    if told == _FAILED:
        raise RuntimeError("the first process of this fit has failed: see its message")
    state = send_state(start)
    history: list[dict[str, Any]] = json.loads(send_text(""))
    return state, history
