"""Low rank beside its alternatives, in equal bytes: sparsity, quantization, and quantization with a part of low rank.

A budget is bits a weight of the compared layers, everything counted that has to be stored:

    low rank       16 k (m + n - k) / (m n), ranks by plan.py      sparse      16 s + 1, s the share kept
    b bits         b + 32 / group                                  b bits + X  that + 16 k (m + n) / (m n)

Every way takes what it can within the budget; its matrix, computed in float32, takes the place of the layer's. A bias
takes up the mean error, whatever the way (approximate.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from eckart.nn.approximate import approximated
from eckart.nn.calibrate import Decomposition, Progress
from eckart.nn.directory import decompose_directory
from eckart.nn.experts import unstack
from eckart.nn.language import load_model
from eckart.nn.linear import folded
from eckart.nn.plan import plan_ranks
from eckart.nn.quantize import gptq, quantized_bits, round_to_nearest, with_low_rank
from eckart.nn.sparse import magnitude, sparse_bits, wanda

__all__ = ["Way", "compare_model", "ways"]

_MOST_BITS = 8  # what quantization of more would gain is not to be seen


class Way(NamedTuple):
    """A way of storing layers."""

    name: str
    setting: str
    bits: float  # a weight
    weight: Callable[[str, torch.Tensor], torch.Tensor]  # for a layer's name and its weight: what is stored


def compare_model(
    model: str | os.PathLike[str],
    windows: torch.Tensor,
    budgets: Sequence[float],
    measure: Callable[[Any], Mapping[str, float]],
    work: str | os.PathLike[str],
    *,
    patterns: tuple[str, ...] = ("*",),
    skip: tuple[str, ...] = (),
    gradients: int = 8,
    group: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure a causal language model as it is, then with the layers in its blocks stored in every way.

    Parameters
    ----------
    model : path
    windows : (windows, context) int64
        Tokens to calibrate with.
    budgets : sequence of float
        Bits a weight.
    measure : callable
        Gives figures of the model.
    work, patterns, skip, gradients, seed
        As in `eckart.nn.directory.decompose_directory`.
    group : int
        As in `ways`.
    progress : callable, optional

    Yields
    ------
    dict
        Method, setting, bits a weight, and the figures; one row at a time, for it takes long.

    Raises
    ------
    ValueError
        A budget that is not above 0, or no number of bits for a group; what `decompose_directory` refuses.
    """
    for budget in budgets:
        if not budget > 0:
            raise ValueError(f"a budget is {budget} bits a weight, expected above 0")
    if group < 1:
        raise ValueError(f"group is {group}, expected a number of weights, at least 1")
    wanted: dict[str, Any] = {"patterns": patterns, "skip": skip, "gradients": gradients, "seed": seed}
    found = decompose_directory(model, windows, work, keep_moments=True, progress=progress, **wanted)
    network = load_model(model).requires_grad_(False)
    unstack(network)
    layers = {name: network.get_submodule(name) for name in found.layers}
    yield {"method": "as it is", "setting": "", "bits": 16.0, **measure(network)}
    seen = set[tuple[str, str]]()
    for budget in budgets:
        for way in ways(found, budget, group):
            if (way.name, way.setting) in seen:  # 8 bits, at every budget above
                continue
            seen.add((way.name, way.setting))
            told = f"{way.name}, {way.setting}"
            with approximated(layers, found, way.weight, progress and (lambda a, b, told=told: progress(told, a, b))):
                yield {"method": way.name, "setting": way.setting, "bits": way.bits, **measure(network)}


def ways(found: Decomposition, budget: float, group: int = 128) -> list[Way]:
    """Give what each method can make of the layers in a budget; a method that cannot meet it is left out.

    Parameters
    ----------
    found : Decomposition
        With moments.
    budget : float
        Bits a weight, above 0; the layers have 16.
    group : int
        Weights that share a scale and an offset.
    """
    # (the matrix that acts on the inputs; a convolution of low rank may be another one)
    shapes = {name: (x.shape[0] * x.shape[1] // n, n) for name, x in found.layers.items() for n in [found.inputs(name)]}
    numbers = sum(m * n for m, n in shapes.values())

    def mean(bits: Callable[[int, int], float]) -> float:
        return sum(bits(m, n) * m * n for m, n in shapes.values()) / numbers

    given = [*_low_rank(found, budget)]
    share = min(1.0, (budget - 1) / 16)
    if share > 0:
        kept = f"{share:.3g} kept"
        given.append(Way("magnitude", kept, sparse_bits(share), lambda name, W: magnitude(W.flatten(1), share)))
        given.append(
            Way("wanda", kept, sparse_bits(share), lambda name, W: wanda(W.flatten(1), found.moments(name), share))
        )
    sizes = {b: mean(lambda m, n, b=b: quantized_bits(n, b, group)) for b in range(2, _MOST_BITS + 1)}
    fitting = [b for b, size in sizes.items() if size <= budget]
    for kind in ("nearest", "gptq") if fitting else ():
        on_grid = _grid(kind, fitting[-1], group, found)
        given.append(Way(kind, f"{fitting[-1]} bits", sizes[fitting[-1]], on_grid))
    # What a whole bit less leaves goes to X, as large in every layer as its share of the numbers.
    for kind in ("nearest", "gptq") if len(fitting) > 1 and budget < sizes[_MOST_BITS] else ():
        bits = fitting[-2]
        ranks = {name: int((budget - sizes[bits]) * m * n / (16 * (m + n))) for name, (m, n) in shapes.items()}
        size = sizes[bits] + sum(16 * k * sum(shapes[name]) for name, k in ranks.items()) / numbers
        setting = f"{bits} bits + rank {min(ranks.values())} to {max(ranks.values())}"
        split = _split(_grid(kind, bits, group, found), ranks, found, rounds=3 if kind == "nearest" else 1)
        given.append(Way(f"{kind} + low rank", setting, size, split))
    return given


def _grid(kind: str, bits: int, group: int, found: Decomposition) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def weight(name: str, W: torch.Tensor) -> torch.Tensor:
        W = W.flatten(1)
        return round_to_nearest(W, bits, group) if kind == "nearest" else gptq(W, found.moments(name), bits, group)

    return weight


def _split(
    on_grid: Callable[[str, torch.Tensor], torch.Tensor], ranks: Mapping[str, int], found: Decomposition, rounds: int
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    def weight(name: str, W: torch.Tensor) -> torch.Tensor:
        R = found.moments(name)
        Q, X = with_low_rank(W.flatten(1), lambda A: on_grid(name, A), ranks[name], right=R, rounds=rounds)
        return Q + X.dense().to(W)

    return weight


def _low_rank(found: Decomposition, budget: float) -> list[Way]:
    try:
        plan = plan_ranks(found.layers, min(1.0, budget / 16))
    except ValueError:  # below what the least ranks take
        return []

    def weight(name: str, W: torch.Tensor) -> torch.Tensor:
        rank = plan.layers[name].rank
        return W if rank is None else folded(found.cut(name, rank)[0].dense().to(W), W.shape)

    return [Way("low rank", f"{plan.keep:.3g} kept", 16 * plan.keep, weight)]
