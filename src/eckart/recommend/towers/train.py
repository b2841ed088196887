"""The training loop of two towers: users in batches with all their entries, a shared pool, Adam.

Each batch costs two towers' vectors, one matrix product for the scores (losses.py), and two for their gradients;
the gradient with respect to the vectors goes back through the towers by autograd. Everything random is drawn from
(seed, epoch), so an epoch depends on the state before it alone, and a run that is resumed has the bits of one that
was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eckart.recommend.towers import losses
from eckart.recommend.towers.distributed import Group
from eckart.recommend.towers.negatives import Pool, draw_pool, hits
from eckart.recommend.towers.net import Net, Tower
from eckart.recommend.training import Record, State

__all__ = ["Entries", "Trainer", "drawing_from"]

_ROWS = 1 << 13  # encoded at a time


class Entries(NamedTuple):
    """What is trained on, by user."""

    indptr: np.ndarray  # (n + 1,) int64
    items: np.ndarray  # (nnz,) int64
    weight: np.ndarray  # (nnz,) float32, of each entry in the loss
    counts: np.ndarray  # (m,) int64, entries of each item
    reg_user: np.ndarray  # (n,) float32, l_u, for the squared loss
    reg_entry: np.ndarray  # (m,) float32, l_i / n_i

    def of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of these users are, and which of the users has each."""
        begin = self.indptr[users]
        count = self.indptr[users + 1] - begin
        row = np.repeat(np.arange(len(users)), count)
        return np.arange(len(row)) + np.repeat(begin - (np.cumsum(count) - count), count), row


@contextmanager
def drawing_from(device: str, *numbers: int) -> Iterator[None]:
    """Let torch draw from a generator seeded by these numbers, and leave the user's own as it was."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    gpu = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=gpu):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave a note for GPUs at every call
        for one in gpu:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


class Trainer:
    """Towers, their optimizer, and how they take an epoch.

    Parameters
    ----------
    solver : TwoTower
    net : Net
    entries : Entries
    group : Group
        Processes that share the work.
    device : str
    """

    def __init__(self, solver: Any, net: Net, entries: Entries, group: Group, device: str) -> None:
        self.solver, self.net, self.entries, self.group, self.device = solver, net.to(device), entries, group, device
        self.users = np.flatnonzero(np.diff(entries.indptr))
        self.run: Any = net
        if group.world > 1:
            self.run = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
        if solver.compile:
            self.run = torch.compile(self.run, dynamic=True)
        decay = 0.0 if solver.loss == "squared" else solver.reg
        self.parameters = dict(net.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=solver.step, weight_decay=decay, fused=True)

    def state(self, epoch: int, steps: int) -> State:
        """Copy everything the next epoch depends on."""
        moments: dict[Any, Any] = self.optimizer.state
        state = {f"weight.{name}": _numpy(value) for name, value in self.net.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                value = moments[parameter][key] if parameter in moments else torch.zeros_like(parameter)
                state[f"{key}.{name}"] = _numpy(value)
        return state | {
            "epoch": np.array([epoch]),
            "steps": np.array([steps]),
            "epochs": np.array([self.solver.epochs]),
        }

    def load(self, state: State) -> None:
        """Go on from a state."""
        if int(state["epochs"][0]) != self.solver.epochs:
            raise ValueError(
                f"the checkpoint is of a run of {int(state['epochs'][0])} epochs, and steps shrink towards the last: "
                f"ask for as many, or choose another directory"
            )
        values = {name: torch.from_numpy(state[f"weight.{name}"]) for name in self.net.state_dict()}
        self.net.load_state_dict(values)
        steps = float(state["steps"][0])
        for name, parameter in self.parameters.items():
            moments = {k: _tensor(state[f"{k}.{name}"], self.device).clone() for k in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(steps, device=self.device), **moments}

    def step(self, state: State) -> tuple[State, Record]:
        """Take an epoch from a state."""
        self.load(state)
        epoch, steps = int(state["epoch"][0]), int(state["steps"][0])
        solver, n = self.solver, len(self.users)
        for group in self.optimizer.param_groups:
            group["lr"] = solver.step * (1 + math.cos(math.pi * epoch / solver.epochs)) / 2
        rng = np.random.default_rng([solver.seed, 1, epoch])
        order, total = rng.permutation(self.users), 0.0
        self.net.train()
        with drawing_from(self.device, solver.seed, 2, epoch, self.group.rank):
            for begin in range(0, n, solver.batch):
                users = order[begin : begin + solver.batch]
                place, _ = self.entries.of(users)
                pool = draw_pool(
                    *(solver.negatives, solver.draws, solver.negative_exponent, self.entries.counts),
                    *(self.entries.items[place], (len(users), n), rng),
                )
                total += self._update(users[self.group.rank :: self.group.world], len(users), pool)
                steps += 1
        if self.group.world > 1:
            all_of = torch.tensor([total], dtype=torch.float64, device=self.device)
            dist.all_reduce(all_of)
            total = float(all_of)
        if solver.loss != "squared":
            total /= len(self.entries.items)
        return self.state(epoch + 1, steps), {"objective": total}

    def vectors(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of all users and all items, (n, k) and (m, k) float32."""
        self.load(state)
        self.net.eval()
        counts = len(self.entries.indptr) - 1, len(self.entries.counts)
        return self._all(self.net.user, counts[0]), self._all(self.net.item, counts[1])

    def _all(self, tower: Tower, count: int) -> np.ndarray:
        with torch.no_grad():
            blocks = (torch.arange(b, min(b + _ROWS, count), device=self.device) for b in range(0, count, _ROWS))
            return np.concatenate([_numpy(tower(rows)) for rows in blocks]).astype(np.float32)

    def _update(self, users: np.ndarray, batch: int, pool: Pool) -> float:
        """Take a step for these of the batch's users; gives their share of the loss."""
        solver, data, device = self.solver, self.entries, self.device
        place, row = data.of(users)
        items, entry = np.unique(data.items[place], return_inverse=True)
        asked = _tensor(np.concatenate([items, pool.items]), device)
        with torch.autocast("cuda", torch.bfloat16, enabled=solver.mixed and device.startswith("cuda")):
            x, y = self.run(_tensor(users, device), asked)
        with torch.no_grad():
            X, Y = x.float(), y.float()
            P, N = Y[: len(items)], Y[len(items) :]
            user, entry = _tensor(row, device), _tensor(entry, device)
            weight, omega = _tensor(data.weight[place], device), _tensor(pool.omega, device)
            U, V = X[user], P[entry]
            if solver.loss == "squared":
                value, (gx, gv, gn) = losses.squared(
                    *(X, user, V, N, omega, weight, _tensor(data.reg_user[users], device)),
                    *(_tensor(data.reg_entry[data.items[place]], device), solver.unobserved_weight),
                )
            else:
                s, S = (U * V).sum(1), X @ N.T
                masked = _tensor(hits(pool.items, data.items[place], row), device)
                S.view(-1).index_fill_(0, masked, -math.inf)
                if solver.negatives == "hard" and solver.hardest < S.shape[1]:
                    least = S.topk(solver.hardest, 1).values[:, -1:]
                    S.masked_fill_(least > S, -math.inf)
                m = int(np.count_nonzero(data.counts))
                if solver.loss == "softmax":
                    value, ds = losses.softmax(s, user, weight, S, omega, solver.temperature)
                elif solver.loss == "bpr":
                    value, ds = losses.bpr(s, user, weight, S, omega, solver.temperature, m)
                else:
                    value, ds = losses.ccl(s, user, weight, S, omega, solver.margin, solver.negative_weight, m)
                gx, gv, gn = S @ N, ds[:, None] * U, S.T @ X
                gx.index_add_(0, user, ds[:, None] * V)
            gp = torch.zeros_like(P).index_add_(0, entry, gv)
            # Of the mean over entries: a batch stands for all users, and DistributedDataParallel takes a mean.
            scale = len(self.users) / (batch * len(data.items)) * self.group.world
            gradients = [(gx * scale).to(x.dtype), (torch.cat([gp, gn]) * scale).to(y.dtype)]
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([x, y], gradients)
        self.optimizer.step()
        return value


def _tensor(array: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy().copy() if tensor.is_floating_point() else tensor.cpu().numpy().copy()
