"""The embedding and the softmax of a language model, decomposed in groups of tokens.

A row d of the error D of an embedding costs 1/2 d' G d whenever its token is read, with G = E[g g'] of the loss's
gradients at the embedding's output. In a softmax, whose logits are W h, the curvature of the loss is diag(p) - p p';
its diagonal gives 1/2 sum_v p_v (d_v' h)^2. With the frequencies f of tokens, and a metric that is a Kronecker product
as in calibrate.py, a group of tokens costs

    1/2 tr(diag(f) D R D'),    R = G (embedding),   E[h h'] (softmax),   G + E[h h'] (tied: one matrix in two places).

f is the mean of the predictions p over the calibration text: the softmax's own weights, and an estimate of how often
a token will be read that is above 0 for tokens that the text does not have. A part of it is spread evenly.

Tokens are sorted by f into groups, a layer of the plan each: frequent tokens keep more than rare ones.

Source: Chen, Si, Li, Chelba, Hsieh 2018, "GroupReduce", for groups and counts as weights; the metric is ours.
Symbols: W (V x d) the matrix, V tokens. See docs/notation.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from eckart.core.svd import metric_svd
from eckart.nn.blocks import LanguageBlocks
from eckart.nn.calibrate import Decomposition, damped
from eckart.nn.embedding import LowRankEmbedding
from eckart.nn.output import write_whole
from eckart.nn.plan import RankPlan
from eckart.nn.surgery import low_rank_tensors

__all__ = [
    "EVEN",
    "check_ends",
    "decompose_vocabulary",
    "group_sizes",
    "grouped_ranks",
    "grouped_tensors",
    "write_groups",
]

EVEN = 0.1  # share of the frequencies that is spread evenly over all tokens
_GROUPS = 4, 12  # least and most of them


def group_sizes(tokens: int, width: int, groups: int | None = None) -> list[int]:
    """Cut a vocabulary into groups of about the same size.

    A group of m tokens and rank k spends k (d - k) numbers on its own directions: by default m is 4 d or more, where
    that leaves enough groups to tell frequent tokens from rare ones.

    Examples
    --------
    >>> group_sizes(49152, width=576) == [4096] * 12
    True
    >>> group_sizes(32000, width=4096), group_sizes(5, width=2, groups=2)
    ([8000, 8000, 8000, 8000], [3, 2])
    """
    least, most = _GROUPS
    groups = max(least, min(most, tokens // (4 * width))) if groups is None else groups
    return [len(part) for part in torch.arange(tokens).tensor_split(groups) if len(part)]


def decompose_vocabulary(
    blocks: LanguageBlocks,
    batches: Sequence[torch.Tensor],
    folder: str | os.PathLike[str],
    *,
    groups: int | None = None,
    damping: float = 0.1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Decomposition:
    """Decompose the embedding and the softmax, after `eckart.nn.calibrate.decompose` with ``keep_ends``.

    Parameters
    ----------
    blocks, batches, folder
        Those of `decompose`, which had some gradients.
    groups : int
        Of tokens; by default what `group_sizes` takes.
    damping : float
        How much of the identity is added to R, in medians of its diagonal.
    progress : callable, optional

    Returns
    -------
    Decomposition
        Of the blocks' layers and of the groups: ``groups`` says which are whose.

    Raises
    ------
    ValueError
        An embedding or a softmax that computes something of its own, or activations that are not finite.
    """
    folder, count, told = Path(folder), len(blocks.names), progress or (lambda stage, done, total: None)
    found, stream = folder / f"block-{count}.safetensors", folder / f"stream-{count}.safetensors"
    if not found.exists():
        embedding, softmax = _ends_of(blocks.model)
        model: Any = blocks.model
        outputs, gradients = load_file(stream)["x"], load_file(folder / "gradients-start.safetensors")["g"]
        f, H = _predictions(blocks, batches, outputs, lambda done: told("reading predictions", done, len(batches)))
        G = torch.zeros(H.shape, dtype=torch.float64)
        for batch, gradient in zip(batches, gradients, strict=False):
            g = blocks.pull_back(batch, gradient).flatten(0, -2)
            G += (g.T @ g).double() / (len(g) * len(gradients))
        f = (1 - EVEN) * f + EVEN / len(f)
        tied = model.get_submodule(embedding).weight is model.get_submodule(softmax).weight
        metrics = {embedding: G + H} if tied else {embedding: G, softmax: H}
        matrices = {name: (model.get_submodule(name).weight, damped(R, damping)) for name, R in metrics.items()}
        write_groups(found, f, matrices, softmax if tied else None, groups)
    (folder / "gradients-start.safetensors").unlink(missing_ok=True)
    write_whole(stream, {})
    return Decomposition(folder)


def write_groups(
    file: Path,
    f: torch.Tensor,
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    tied: str | None = None,
    groups: int | None = None,
) -> None:
    """Decompose matrices in groups of their rows, for `Decomposition` to find beside the layers.

    Parameters
    ----------
    file : path
    f : Tensor of shape (V,)
        What each row counts.
    matrices : mapping of str to (W, R)
        W (V, d) and its metric R (d, d), damped; None for 1.
    tied : str, optional
        Name of the softmax that shares the matrix.
    groups : int, optional

    Raises
    ------
    ValueError
        A metric that is not finite.
    """
    order = f.argsort(descending=True, stable=True)
    tensors, facts = {"tokens": order.int()}, dict[str, Any]()
    for name, (W, R) in matrices.items():
        if R is not None and not bool(R.isfinite().all()):
            raise ValueError(f"what passes through {name} is not finite: the model is damaged")
        for i, of in enumerate(order.split(group_sizes(len(W), W.shape[1], groups))):
            group, parts = f"{name}[{i}]", metric_svd(W[of].double(), f[of], R)
            rank = int((parts.squares > 0).sum())
            factors = parts.cut(rank)
            tensors |= {f"{group}.squares": parts.squares[:rank], f"{group}.mean": torch.zeros(W.shape[1])}
            tensors |= {f"{group}.left": factors.left.float(), f"{group}.right": factors.right.float()}
            facts[group] = {"shape": [len(of), W.shape[1]], "bias": False, "transposed": False}
            facts[group] |= {"of": name, "tied": tied}
    write_whole(file, {name: x.contiguous() for name, x in tensors.items()}, {"layers": json.dumps(facts)})


def check_ends(model: Any, gradients: int) -> None:
    """Refuse what cannot be decomposed: at once, where a calibration would come first.

    Raises
    ------
    ValueError
        An embedding or a softmax that computes something of its own, or no gradients.
    """
    if gradients < 1:
        raise ValueError("embeddings are compressed by what they do to the loss: gradients is 0, expected at least 1")
    _ends_of(model)


def _ends_of(model: Any) -> tuple[str, str]:
    names = {module: name for name, module in model.named_modules()}
    embedding, softmax = model.get_input_embeddings(), model.get_output_embeddings()
    for layer, kind, what in ((embedding, nn.Embedding, "embedding"), (softmax, nn.Linear, "softmax")):
        if type(layer) is not kind or getattr(layer, "bias", None) is not None:
            found = "has a bias" if type(layer) is kind else f"is a {type(layer).__name__}, expected {kind.__name__}"
            raise ValueError(f"the model's {what} {found}: compress it without its embeddings")
    return names[embedding], names[softmax]


@torch.no_grad()
def _predictions(
    blocks: LanguageBlocks, batches: Sequence[torch.Tensor], outputs: torch.Tensor, told: Callable[[int], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the mean of the predictions (V,), and E[h h'] of what the softmax reads (d, d); both float64."""
    model: Any = blocks.model
    blocks.run(0, blocks.load(0), blocks.start(batches[0]))  # finds out how blocks give their outputs
    p = H = torch.zeros((), dtype=torch.float64)
    read: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda layer, x, out: read.append(x[0]))
    try:
        for done, (batch, hidden) in enumerate(zip(batches, outputs, strict=True)):
            predicted = blocks.logits(batch, hidden).flatten(0, -2).softmax(-1)
            h = read.pop().flatten(0, -2)
            p = p + predicted.mean(0).double() / len(batches)
            H = H + (h.T @ h).double() / (len(h) * len(batches))
            told(done + 1)
    finally:
        handle.remove()
    return p, H


def grouped_ranks(found: Decomposition, plan: RankPlan, name: str) -> tuple[list[int], list[int]] | None:
    """Give sizes and ranks of the groups of an embedding or a softmax; None if it stays as it is."""
    groups = [plan.layers[layer] for layer in found.groups[name].layers]
    if all(group.rank is None for group in groups):
        return None
    sizes = [group.shape[0] for group in groups]
    return sizes, [size if group.rank is None else group.rank for size, group in zip(sizes, groups, strict=True)]


def grouped_tensors(
    weight: torch.Tensor, found: Decomposition, plan: RankPlan, name: str, dense: bool = False
) -> dict[str, torch.Tensor]:
    """Give the tensors of an embedding or a softmax in groups, as `eckart.nn.embedding` names them, in float32.

    Parameters
    ----------
    weight : Tensor of shape (V, d)
    found : Decomposition
    plan : RankPlan
    name : str
        One of ``found.groups``, with a group that has a rank.
    dense : bool
        Multiply them out: one tensor, weight.
    """
    groups = found.groups[name]
    order, first, tensors = torch.empty(len(weight), dtype=torch.int32), 0, dict[str, torch.Tensor]()
    for i, layer in enumerate(groups.layers):
        rank, size = plan.layers[layer].rank, plan.layers[layer].shape[0]
        tokens = groups.tokens[first : first + size].long()
        place = torch.arange(size, dtype=torch.int32)
        if rank is None or rank == size:
            parts = {"left": torch.zeros(0, size), "right": weight[tokens]}
        else:
            parts = low_rank_tensors(found.cut(layer, rank)[0], plan.pivoted)
            place = parts.get("order", place)
        order[tokens] = first + place
        first += size
        tensors |= {f"{side}.{i}": parts[side].float().contiguous() for side in ("left", "right")}
    tensors["order"] = order
    if not dense:
        return tensors
    layer = LowRankEmbedding(weight.shape[1], *(grouped_ranks(found, plan, name) or ((), ())), plan.pivoted)
    layer.load_state_dict(tensors)
    return {"weight": layer.weight.detach()}
