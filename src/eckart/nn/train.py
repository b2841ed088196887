"""The training loop: steps of AdamW, which a run that was killed goes on with to the bit.

    rate(t) = lr  min(1, (t + 1) / w)  (1 + cos(pi t / T)) / 2,     t = 0, ..., T - 1

Steps are a function of their number alone: what a step reads, and whatever it draws, must follow from t. So parameters,
both moments of Adam and the step are all that a checkpoint has to hold.

Source: Loshchilov, Hutter 2019, "Decoupled weight decay regularization".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from eckart.nn.output import write_whole

__all__ = ["rate_at", "train"]


def rate_at(step: int, steps: int, lr: float, warmup: float) -> float:
    """Learning rate of a step: a straight line up over a share `warmup` of the steps, under half a cosine down.

    Examples
    --------
    >>> [round(rate_at(t, steps=4, lr=1.0, warmup=0.5), 2) for t in range(4)]
    [0.5, 0.85, 0.5, 0.15]
    """
    return lr * min(1.0, (step + 1) / max(1.0, warmup * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def train(
    parameters: Mapping[str, nn.Parameter],
    loss_at: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    *,
    warmup: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    clip: float = 1.0,
    checkpoint: str | os.PathLike[str] | None = None,
    run: str = "",
    every: float = 60.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train parameters in place.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        What is trained; each must require gradients.
    loss_at : callable
        Gives the loss of step t = 0, 1, ...
    steps : int
    lr : float
        Highest learning rate.
    warmup : float
        Share of the steps over which the rate rises.
    betas, weight_decay
        Of AdamW.
    clip : float
        Longest gradient of all parameters together; longer ones are shortened to it.
    checkpoint : path, optional
        File that the state is kept in, `every` so many seconds, and read from if it is there.
    run : str
        What this run is; a checkpoint of another one is not gone on with.
    progress : callable, optional
        Called with steps done, steps in all and the step's loss.

    Returns
    -------
    list of float
        Loss of every step.

    Raises
    ------
    ValueError
        A loss that is not finite, or nothing to train; an argument out of range.

    Examples
    --------
    >>> x = nn.Parameter(torch.tensor([3.0]))
    >>> losses = train({"x": x}, lambda step: (x - 1).square().sum(), steps=100, lr=0.1)
    >>> losses[0], round(x.item(), 1)
    (4.0, 1.0)
    """
    if not parameters:
        raise ValueError("there is nothing to train")
    if steps < 1 or not lr > 0 or not 0 <= warmup <= 1:
        raise ValueError(
            f"steps is {steps}, lr {lr} and warmup {warmup}, expected at least 1, above 0, and a share from 0 to 1"
        )
    tensors = list(parameters.values())
    optimizer = torch.optim.AdamW(tensors, lr=lr, betas=betas, weight_decay=weight_decay)
    file = None if checkpoint is None else Path(checkpoint)
    losses = [] if file is None else _load(file, parameters, optimizer, run)
    saved = time.monotonic()
    for step in range(len(losses), steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, lr, warmup)
        loss = loss_at(step)
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss of step {step} is not finite: choose a smaller learning rate than {lr:g}")
        loss.backward()
        nn.utils.clip_grad_norm_(tensors, clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if progress:
            progress(step + 1, steps, losses[-1])
        if file is not None and time.monotonic() - saved >= every:
            _save(file, parameters, optimizer, losses, run)
            saved = time.monotonic()
    return losses


def _save(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    run: str,
) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors |= {f"{name}/value": parameter.detach(), f"{name}/step": state["step"]}
        tensors |= {f"{name}/first": state["exp_avg"], f"{name}/second": state["exp_avg_sq"]}
    write_whole(file, tensors, {"losses": json.dumps(losses), "run": run})


def _load(
    file: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, run: str
) -> list[float]:
    """Put a checkpoint's state in place; the losses so far, none where there is no checkpoint of this run."""
    try:
        opened = safe_open(str(file), framework="pt")
    except (FileNotFoundError, SafetensorError):
        return []
    with opened as tensors, torch.no_grad():
        facts = tensors.metadata() or {}
        if facts.get("run") != run:
            return []
        for name, parameter in parameters.items():
            parameter.copy_(tensors.get_tensor(f"{name}/value"))
            optimizer.state[parameter] = {
                "step": tensors.get_tensor(f"{name}/step"),
                "exp_avg": tensors.get_tensor(f"{name}/first").to(parameter.device),
                "exp_avg_sq": tensors.get_tensor(f"{name}/second").to(parameter.device),
            }
        return json.loads(facts["losses"])
