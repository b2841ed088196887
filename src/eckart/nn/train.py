"""The training loop: steps of AdamW, which a run that was killed goes on with to the bit.

    rate(t) = lr  min(1, (t + 1) / w)  (1 + cos(pi t / T)) / 2,     t = 0, ..., T - 1

A step's loss comes in parts, and a part's graph is gone before the next is made: gradients add up. Under several
processes (torch.distributed) each gives its own parts, gradients are summed, and all take the same step.

Steps are a function of their number alone: what a step reads, and whatever it draws, must follow from t. So parameters,
both moments of Adam, the losses and the best parameters so far are all that a checkpoint has to hold.

Source: Loshchilov, Hutter 2019, "Decoupled weight decay regularization".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn

from eckart.nn.output import write_whole

__all__ = ["Trained", "add_up", "process_of", "rate_at", "train"]


class Trained(NamedTuple):
    """What a run went through."""

    losses: list[float]  # of every step
    validated: list[tuple[int, float]]  # steps done, and the loss on what was held out then; the first before any step

    @property
    def best(self) -> int:
        """Steps done when the loss on what was held out was least; all, where nothing was."""
        return min(self.validated, key=lambda x: x[1])[0] if self.validated else len(self.losses)


def rate_at(step: int, steps: int, lr: float, warmup: float) -> float:
    """Learning rate of a step: a straight line up over a share `warmup` of the steps, under half a cosine down.

    Examples
    --------
    >>> [round(rate_at(t, steps=4, lr=1.0, warmup=0.5), 2) for t in range(4)]
    [0.5, 0.85, 0.5, 0.15]
    """
    return lr * min(1.0, (step + 1) / max(1.0, warmup * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def process_of() -> tuple[int, int]:
    """Which process this is, and of how many: (0, 1) where torch.distributed is not in use."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Put the sums over all processes into tensors of one kind, in place."""
    if process_of()[1] == 1:
        return
    each = list(tensors)
    flat = torch.cat([x.flatten() for x in each])
    dist.all_reduce(flat)
    for x, total in zip(each, flat.split([x.numel() for x in each]), strict=True):
        x.copy_(total.view_as(x))


def train(
    parameters: Mapping[str, nn.Parameter],
    parts_at: Callable[[int], Iterable[torch.Tensor]],
    steps: int,
    lr: float,
    *,
    warmup: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    clip: float = 1.0,
    validate: Callable[[], float] | None = None,
    validate_every: int = 0,
    patience: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    run: str = "",
    every: float = 60.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train parameters in place.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        What is trained; each must require gradients.
    parts_at : callable
        Gives the parts of the loss of step t = 0, 1, ..., of which it is the sum.
    steps : int
    lr : float
        Highest learning rate.
    warmup : float
        Share of the steps over which the rate rises.
    betas, weight_decay
        Of AdamW.
    clip : float
        Longest gradient of all parameters together; longer ones are shortened to it.
    validate : callable, optional
        Gives the loss on what is held out, the same in all processes. Parameters end as they were when it was least.
    validate_every : int
        Steps from one validation to the next; 0 for before the first and after the last only.
    patience : int
        Validations in a row that may be no better than the best before training stops; 0 for all steps.
    checkpoint : path, optional
        File that the state is kept in, `every` so many seconds, and read from if it is there.
    run : str
        What this run is; a checkpoint of another one is not gone on with.
    progress : callable, optional
        Called with steps done, steps in all and the step's loss.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        A loss that is not finite, or nothing to train; an argument out of range.

    Examples
    --------
    >>> x = nn.Parameter(torch.tensor([3.0]))
    >>> losses, _ = train({"x": x}, lambda step: [(x - 1).square().sum()], steps=100, lr=0.1)
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
    state = _State(parameters, optimizer)
    if file is not None:
        state.load(file, run)
    saved = time.monotonic()

    def judge() -> bool:
        """Validate; whether it is time to stop."""
        assert validate is not None
        loss, done = validate(), len(state.losses)
        loss = loss if math.isfinite(loss) else math.inf
        if not state.validated or loss < min(x for _, x in state.validated):
            state.best = {name: x.detach().to("cpu", copy=True) for name, x in parameters.items()}
        state.validated.append((done, loss))
        best = min(range(len(state.validated)), key=lambda i: state.validated[i][1])
        return bool(patience) and len(state.validated) - 1 - best >= patience

    stop = False
    for step in range(len(state.losses), steps + 1):
        due = step in (0, steps) or (validate_every > 0 and step % validate_every == 0)
        if validate is not None and due and (not state.validated or state.validated[-1][0] < step):
            stop = judge()
        if stop or step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, lr, warmup)
        optimizer.zero_grad()  # also of what somebody else has left there
        total = torch.zeros((), device=tensors[0].device)
        try:
            for part in parts_at(step):
                part.backward()
                total += part.detach()
        except KeyboardInterrupt:  # nothing has moved in this step: all before it is kept
            if file is not None and state.losses:
                state.save(file, run)
            raise
        add_up([total])
        if not bool(total.isfinite()):
            raise ValueError(f"the loss of step {step} is not finite: choose a smaller learning rate than {lr:g}")
        add_up(_gradients(tensors))
        nn.utils.clip_grad_norm_(tensors, clip)
        optimizer.step()
        state.losses.append(total.item())
        if progress:
            progress(step + 1, steps, state.losses[-1])
        if file is not None and time.monotonic() - saved >= every:
            state.save(file, run)
            saved = time.monotonic()
    with torch.no_grad():
        for name, best in state.best.items():
            parameters[name].copy_(best)
        if not all(bool(x.isfinite().all()) for x in tensors):  # the last step is followed by no loss
            raise ValueError(f"what was trained is not finite: choose a smaller learning rate than {lr:g}")
    optimizer.zero_grad()
    return Trained(state.losses, state.validated)


def _gradients(tensors: list[nn.Parameter]) -> list[torch.Tensor]:
    """Give the gradients; zeros where this process had no part, or a parameter none in it."""
    for x in tensors:
        x.grad = torch.zeros_like(x) if x.grad is None else x.grad
    return [x.grad for x in tensors if x.grad is not None]


@dataclass
class _State:
    """What a checkpoint holds."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    validated: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, file: Path, run: str) -> None:
        """Write it, in the first process; whole or not at all."""
        if process_of()[0]:
            return
        tensors = {f"{name}/best": x for name, x in self.best.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            tensors |= {f"{name}/value": parameter.detach(), f"{name}/step": moments["step"]}
            tensors |= {f"{name}/first": moments["exp_avg"], f"{name}/second": moments["exp_avg_sq"]}
        file.parent.mkdir(parents=True, exist_ok=True)
        facts = {"losses": json.dumps(self.losses), "validated": json.dumps(self.validated), "run": run}
        write_whole(file, tensors, facts)

    def load(self, file: Path, run: str) -> None:
        """Put a checkpoint's state in place, if there is one of this run."""
        try:
            opened = safe_open(str(file), framework="pt")
        except (FileNotFoundError, SafetensorError):
            return
        with opened as tensors, torch.no_grad():
            facts = tensors.metadata() or {}
            if facts.get("run") != run:
                return
            names = set(tensors.keys())
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors.get_tensor(f"{name}/value"))
                self.optimizer.state[parameter] = {
                    "step": tensors.get_tensor(f"{name}/step"),
                    "exp_avg": tensors.get_tensor(f"{name}/first").to(parameter.device),
                    "exp_avg_sq": tensors.get_tensor(f"{name}/second").to(parameter.device),
                }
                if f"{name}/best" in names:
                    self.best[name] = tensors.get_tensor(f"{name}/best")
            self.losses = json.loads(facts["losses"])
            self.validated = [(step, loss) for step, loss in json.loads(facts["validated"])]
