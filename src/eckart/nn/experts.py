"""Experts of a mixture as layers: a stack of matrices becomes one linear layer for each expert and matrix.

    y_t = sum over the experts e that t is sent to of   p_te  D_e ( a(G_e x_t) * U_e x_t )

transformers holds [G_e; U_e] of all experts as one parameter, `gate_up_proj` (E, 2f, d), and D_e as `down_proj`
(E, d, f). Here they are `3.gate_up_proj` and `3.down_proj`, linear layers that see the tokens of their expert and no
others, so that whatever treats linear layers treats them. Files have them stacked, or one by one under older names;
`UnstackedWeights` reads either as if it were the layers, and gives the tensors their places in the files back.

A class of experts may compute something else than the equation: a stack is taken apart only if both give the same
on a few numbers, small and large.

What a text tells of an expert is less the fewer of its tokens go there. A tenth of them counts as spread evenly over
the experts, and an expert that none reaches has the mean moments of those that some reach.

Symbols: E experts, d -> f -> d; see docs/notation.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from eckart.nn.surgery import replace_layer
from eckart.nn.weights import Weights

__all__ = ["Experts", "UnstackedWeights", "alike", "fill_in", "share_evenly", "stacks_in", "unstack"]

_EVEN = 0.1  # share of the tokens that is spread evenly over all experts

# Matrices of an expert that files may have one by one: which layer, and in which place of its rows.
_ONE_BY_ONE = {
    **{"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0)},
    **{"w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0)},
}
_KINDS = ("gate_up_proj", "down_proj")


class _Expert(nn.Module):
    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, activation: Any) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.activation = _linear(gate_up), _linear(down), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(self.activation(gate) * up)


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer


class Experts(nn.ModuleList):
    """The experts of a block, each with two linear layers.

    Parameters
    ----------
    gate_up : Tensor of shape (E, 2f, d)
    down : Tensor of shape (E, d, f)
        The layers' weights share memory with both.
    activation : callable
    """

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, activation: Any) -> None:
        super().__init__(_Expert(*matrices, activation) for matrices in zip(gate_up, down, strict=True))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Give what the experts make of tokens, (tokens, d), sent to k of them each: the last two are (tokens, k)."""
        out = torch.zeros_like(hidden_states)
        for e in top_k_index.unique().tolist():
            place, token = torch.where(top_k_index.T.eq(e))
            y = self[e](hidden_states[token]) * top_k_weights[token, place, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out


def unstack(network: nn.Module) -> dict[str, int]:
    """Take the stacks of experts in a network apart, in place: the layers share their memory.

    Returns
    -------
    dict of str to int
        How many experts each stack has, by its name. A stack that computes something else than `Experts` stays.
    """
    stacks: dict[str, Any] = {name: module for name, module in network.named_modules() if _is_stack(module)}
    for name, stack in stacks.items():
        new = Experts(stack.gate_up_proj.detach(), stack.down_proj.detach(), stack.act_fn)
        replace_layer(network, name, new.train(stack.training).requires_grad_(stack.down_proj.requires_grad))
    return {name: len(stack.gate_up_proj) for name, stack in stacks.items()}


def stacks_in(network: nn.Module) -> dict[str, int]:
    """Say how many experts each `Experts` in a network has, by name."""
    return {name: len(module) for name, module in network.named_modules() if isinstance(module, Experts)}


def _is_stack(module: Any) -> bool:
    own = module._parameters
    if set(own) != set(_KINDS) or any(p is None or p.ndim != 3 for p in own.values()) or not hasattr(module, "act_fn"):
        return False
    (count, rows, width), down = own["gate_up_proj"].shape, own["down_proj"].shape
    alone = len([*module.parameters(), *module.buffers()]) == 2
    return alone and rows % 2 == 0 and down == (count, width, rows // 2) and _computes_the_same(module)


@torch.no_grad()
def _computes_the_same(stack: Any) -> bool:
    """Whether a stack with other matrices, 2 x 4 and 2 x 2, computes what `Experts` does."""
    here: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}  # whatever the defaults are while it is loaded
    draw: dict[str, Any] = {**here, "generator": torch.Generator().manual_seed(0)}
    probe, count = copy.copy(stack), len(stack.gate_up_proj)
    probe.config = SimpleNamespace(_experts_implementation="eager")
    for scale in (0.3, 30.0):  # (a class may clip large numbers)
        gate_up, down = (scale * torch.randn(count, m, 2, **draw) for m in (4, 2))
        probe.__dict__["_parameters"] = {"gate_up_proj": nn.Parameter(gate_up), "down_proj": nn.Parameter(down)}
        index = torch.arange(5, device="cpu")[:, None] % count
        given = (torch.randn(5, 2, **draw), index, torch.rand(5, 1, **draw))
        try:
            if not torch.allclose(probe(*given), Experts(gate_up, down, stack.act_fn)(*given)):
                return False
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):  # it takes other arguments, for one
            return False
    return True


class UnstackedWeights(Weights):
    """Tensors of a model directory, with the matrices of experts under the names of their layers.

    Parameters
    ----------
    folder : path
    stacks : mapping of str to int
        Of `unstack`.
    """

    def __init__(self, folder: Any, stacks: Mapping[str, int]) -> None:
        super().__init__(folder)
        found: dict[str, dict[int, tuple[str, int | None]]] = {}
        # Mixtral's files have its blocks' mixtures under a name of their own.
        parents = {stack.rpartition(".")[0] for stack in stacks}
        olds = {f"{parent.rpartition('.')[0]}.block_sparse_moe": parent for parent in parents}
        for stored in super().__iter__():
            old = next((old for old in _prefixes(stored) if old in olds), None)
            name = stored if old is None else olds[old] + stored[len(old) :]
            stack = next((prefix for prefix in _prefixes(name) if prefix in stacks), None)
            rest = name[len(stack) + 1 :].split(".") if stack else []
            if stack and rest[0] in _KINDS and len(rest) == 1 and super().shape(stored)[:1] == (stacks[stack],):
                for e in range(stacks[stack]):
                    found[f"{stack}.{e}.{rest[0]}.weight"] = {0: (stored, e)}
            elif len(rest) == 3 and rest[0].isdecimal() and rest[1] in _ONE_BY_ONE and rest[2] == "weight":
                layer, place = _ONE_BY_ONE[rest[1]]
                found.setdefault(f"{stack}.{rest[0]}.{layer}.weight", {})[place] = (stored, None)
            else:
                found[name] = {0: (stored, None)}
        self._parts = {name: [parts[place] for place in sorted(parts)] for name, parts in found.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        return [Weights.shape(self, stored)[e is not None :] for stored, e in self._parts[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, unread."""
        first, *others = self._shapes(name)
        return (first[0] + sum(shape[0] for shape in others), *first[1:]) if others else first

    def bytes_of(self, name: str) -> int:
        """Size of a tensor."""
        whole = [(Weights.bytes_of(self, stored), Weights.shape(self, stored), e) for stored, e in self._parts[name]]
        return sum(size if e is None else size // shape[0] for size, shape, e in whole)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Read a tensor in its own dtype, or an element of it along its first axis."""
        if index is not None:
            return self.read(name)[index]
        parts = [Weights.read(self, stored, e) for stored, e in self._parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def restacked(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Give tensors of layers as the files have them: under their names there, stacked or one by one."""
        held: dict[str, dict[int, torch.Tensor]] = {}
        for name, tensor in tensors:
            parts, split = self._parts[name], [tensor]
            if len(parts) > 1:
                split = tensor.split([shape[0] for shape in self._shapes(name)])
            for (stored, e), rows in zip(parts, split, strict=True):
                if e is None:
                    yield stored, rows.contiguous()
                    continue
                held.setdefault(stored, {})[e] = rows
                if len(held[stored]) == Weights.shape(self, stored)[0]:
                    of = held.pop(stored)
                    yield stored, torch.stack([of[i] for i in range(len(of))])


def alike(stacks: Mapping[str, int], layers: Iterable[str]) -> Iterator[list[str]]:
    """Give the layers that are the same matrix of a stack's experts, a list for each stack and matrix."""
    names = set(layers)
    for stack, count in stacks.items():
        for kind in _KINDS:
            yield [name for name in (f"{stack}.{e}.{kind}" for e in range(count)) if name in names]


def share_evenly(of: Sequence[str], rows: dict[str, float]) -> None:
    """Spread a part of the tokens that went to experts evenly over them, in place.

    Examples
    --------
    >>> rows = {"a": 20.0, "b": 0.0}
    >>> share_evenly(["a", "b"], rows)
    >>> rows
    {'a': 19.0, 'b': 1.0}
    """
    mean = sum(rows[name] for name in of) / max(1, len(of))
    rows |= {name: (1 - _EVEN) * rows[name] + _EVEN * mean for name in of}


def fill_in(of: Sequence[str], found: dict[str, torch.Tensor]) -> None:
    """Give layers that nothing is known of the mean of what is known of the others, in place."""
    known = [found[name] for name in of if name in found]
    if known and len(known) < len(of):
        mean = sum(known[1:], start=known[0]) / len(known)
        found |= {name: mean for name in of if name not in found}


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:i]) for i in range(1, len(parts)))
