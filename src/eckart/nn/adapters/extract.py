"""What fine-tuning changed in a model, as an adapter: the difference of two model directories, layer by layer.

    s B A  =  the best approximation of  W_tuned - W_base  of rank r,

in the plain norm, or in the metric of the layer's inputs, R = E[x x']: then it is the layer's outputs that come closest
on text like the calibration's. At full rank it is the difference itself.

Symbols: W (m x n), A (r x n), B (m x r). See docs/notation.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.core.lowrank import LowRank
from eckart.core.svd import metric_svd
from eckart.nn.adapters.adapter import Adapter, Update
from eckart.nn.calibrate import Progress
from eckart.nn.skeleton import Skeleton
from eckart.nn.surgery import is_transposed, layers_of

__all__ = ["extract_adapter"]


def extract_adapter(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    rank: int,
    *,
    moments: Callable[[str], torch.Tensor | None] | None = None,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Adapter, dict[str, Any]]:
    """Extract an adapter from a tuned model and what it was tuned from.

    Parameters
    ----------
    tuned, base : path
        Directories of one architecture, not quantized.
    rank : int
        The largest rank that a layer gets; one whose difference has a smaller rank gets that.
    moments : callable, optional
        Gives E[x x'] of a layer's inputs, (n, n), or None, by its name: layers that have one are cut in that metric.
    patterns, skip : sequence of str
        Which layers, as in `eckart.nn.surgery.layers_of`; embeddings and softmax too.
    progress : callable, optional
        Called with a stage, layers done and layers in all.

    Returns
    -------
    Adapter
    dict
        ``layers``: rank and share of the squared difference that was kept, by name; ``left_out``: tensors that the
        tuning changed and that no adapter of this kind holds (norms, biases), or that were not asked for, with the
        size of their change beside theirs.

    Raises
    ------
    FileNotFoundError, ValueError
        The two do not fit each other, or do not differ.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    before, after = Skeleton(base), Skeleton(tuned)
    parameters = check_alike(before, after)
    layers = layers_of(before.network, patterns, skip, embeddings=True)
    updates, report, left_out, done = dict[str, Update](), dict[str, Any](), dict[str, float](), 0
    for name in parameters:
        old, new = before.read(name), after.read(name)
        layer, _, part = name.rpartition(".")
        if progress and part == "weight" and layer in layers:
            done += 1
            progress("comparing", done, len(layers))
        if old.dtype == new.dtype and torch.equal(old, new):
            continue
        change = new.double() - old.double()
        if not bool(change.any()):
            continue
        if part != "weight" or layer not in layers:
            left_out[name] = float(change.norm() / old.double().norm().clamp_min(1e-300))
            continue
        D = change.T if is_transposed(layers[layer]) else change.flatten(1)
        found = metric_svd(D, None, None if moments is None else moments(layer))
        k = min(rank, max(1, int((found.squares > 0).sum())))
        cut, errors = found.cut(k).balanced(), found.errors()
        factors = LowRank(cut.left.float(), cut.right.float())
        kernel = tuple(layers[layer].weight.shape[1:]) if isinstance(layers[layer], nn.Conv2d) else None
        updates[layer] = Update(factors, float(k), None, kernel, isinstance(layers[layer], nn.Embedding))
        kept = 1 - float(errors[k] / errors[0]) if errors[0] > 0 else 1.0
        report[layer] = {"rank": k, "kept": kept}
    if not updates:
        raise ValueError(f"{tuned} and {base} have the same numbers in every layer that was asked for")
    causal = type(before.network).__name__.endswith("ForCausalLM") or type(before.network).__name__.endswith(
        "LMHeadModel"
    )
    adapter = Adapter(updates, False, Path(base).resolve().name, "CAUSAL_LM" if causal else None)
    return adapter, {"layers": report, "left_out": left_out}


def check_alike(before: Skeleton, after: Skeleton) -> list[str]:
    """Give the names of the parameters of two models, which must be the same, of the same shapes.

    Raises
    ------
    ValueError
    """
    kinds = [type(model.network).__name__ for model in (after, before)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{after.folder} is a {kinds[0]} and {before.folder} a {kinds[1]}: it was not tuned from that")
    sizes = [getattr(model.network.config, "vocab_size", None) for model in (after, before)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{after.folder} and {before.folder} have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens: "
            "give the base with the vocabulary of the tuned model"
        )
    shapes = [
        {name: tuple(p.shape) for name, p in model.network.named_parameters(remove_duplicate=False)}
        for model in (after, before)
    ]
    for name in {**shapes[0], **shapes[1]}:
        got, expected = (x.get(name, "not there") for x in shapes)
        if got != expected:
            raise ValueError(f"{name} is {got} in {after.folder} and {expected} in {before.folder}: other sizes")
    for name in shapes[1]:  # all of them, before any work
        before.source(name)
        after.source(name)
    return list(shapes[1])
