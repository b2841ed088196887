"""Every layer of a network, decomposed in the metric of the data that passes through it.

For a layer y = W x with inputs x and gradients g of the loss at its outputs, replacing W by X raises the loss to second
order by

    1/2 E[(g' D x)^2] ~ 1/2 tr(L D R D'),   D = W - X,   R = E[x x'],   L = E[g g'],

so X is the best approximation of W in the metric (L, R) of core/svd.py, and the sum of cut squares, halved, is the
rise of the loss: in nats a token for a language model. (Inputs and gradients are taken as independent: Martens,
Grosse 2015, "K-FAC".) Gradients are those of labels drawn from the model's own predictions, so that L is the
curvature of the KL divergence and not of one text. Without gradients L = 1: squared error of the layer's outputs.

Where there is a bias, the mean mu of the inputs is removed from R, and the bias takes up D mu.

Blocks are visited twice: forward over all batches for R, then backward over some of them for L. A block, its
activations and its Grams are all that is in memory; what is kept on disk lets a killed run go on:

    stream-i     inputs of block i, all batches, while they are needed; inputs-i   those of the first few
    grams-i      sums of x x' and x of its layers                       gradients-i   of the loss, at its output
    block-i      its layers, decomposed          moments-i   R of their inputs, where it was asked for

and, for vocabulary.py, stream-n of n blocks, what comes out of the last one, and gradients-start.

Symbols: W, X (m x n). See docs/notation.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from eckart.core.lowrank import LowRank
from eckart.nn.blocks import Blocks
from eckart.nn.experts import alike, fill_in, share_evenly, stacks_in
from eckart.nn.output import write_whole
from eckart.nn.separable import decomposed
from eckart.nn.surgery import bias_of, chosen, is_conv1d, is_matrix, outputs_as_rows, rows_of, weight_of

__all__ = ["Decomposition", "Groups", "Layer", "damped", "decompose", "forget", "hooked"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Layer:
    """What a plan needs to know of a layer."""

    shape: tuple[int, int]  # (m, n) of the matrix that is to have a low rank
    squares: np.ndarray  # (r,) float64: twice what each singular direction adds to the loss when it is cut
    bias: bool  # whether it has one, which then takes up the mean
    transposed: bool  # its weight is stored as (n, m)

    @property
    def losses(self) -> np.ndarray:
        """Predicted rise of the loss at every rank 0, ..., r: (r + 1,)."""
        return np.append(np.cumsum(self.squares[::-1])[::-1], 0.0) / 2


class Groups(NamedTuple):
    """An embedding or a softmax whose rows are layers of the plan, a group of tokens each."""

    layers: list[str]  # by name, in order
    tied: str | None  # name of the softmax that shares the matrix
    tokens: torch.Tensor  # (vocabulary,) int32: those of the first group, then of the next


class Decomposition:
    """Decomposed layers in a folder, one file a block.

    Parameters
    ----------
    folder : path
        Where `decompose` put them.

    Attributes
    ----------
    layers : dict of str to Layer
    groups : dict of str to Groups
        Of the embedding and the softmax, where they were decomposed too.
    stacks : dict of str to int
        How many experts each mixture has whose experts are layers, see `eckart.nn.experts`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder, self.layers, self._where = Path(folder), dict[str, Layer](), dict[str, Path]()
        self.groups, self.stacks = dict[str, Groups](), dict[str, int]()
        for file in sorted(self.folder.glob("block-*.safetensors"), key=lambda f: int(f.stem.partition("-")[2])):
            with safe_open(str(file), framework="pt") as opened:
                for name, fact in json.loads((opened.metadata() or {})["layers"]).items():
                    if "experts" in fact:
                        self.stacks[name] = fact["experts"]
                        continue
                    squares = opened.get_tensor(f"{name}.squares").numpy()
                    self.layers[name] = Layer(tuple(fact["shape"]), squares, fact["bias"], fact["transposed"])
                    self._where[name] = file
                    if "of" in fact:  # a group of tokens
                        none = Groups([], fact["tied"], opened.get_tensor("tokens"))
                        self.groups.setdefault(fact["of"], none).layers.append(name)

    def moments(self, name: str) -> torch.Tensor:
        """Give E[x x'] of a layer's inputs, undamped: (n, n) float64. Only where `decompose` was told to keep them."""
        block = self._where[name]
        with safe_open(str(block.with_name(block.name.replace("block", "moments"))), framework="pt") as opened:
            return opened.get_tensor(json.loads((opened.metadata() or {})["owner"])[name])

    def inputs(self, name: str) -> int:
        """Count a layer's inputs."""
        with safe_open(str(self._where[name]), framework="pt") as opened:
            return opened.get_slice(f"{name}.mean").get_shape()[0]

    def cut(self, name: str, rank: int) -> tuple[LowRank, torch.Tensor]:
        """Give a layer's best factors of a rank, and the mean of its inputs."""
        with safe_open(str(self._where[name]), framework="pt") as opened:
            left, right = (opened.get_slice(f"{name}.{side}")[:, :rank] for side in ("left", "right"))
            return LowRank(left, right), opened.get_tensor(f"{name}.mean")


def decompose(
    blocks: Blocks,
    batches: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    gradients: int = 8,
    damping: tuple[float, float] = (1.0, 0.1),
    keep_moments: bool = False,
    keep_ends: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Decomposition:
    """Decompose the layers of every block in the metric of the batches.

    Parameters
    ----------
    blocks : Blocks
    batches : sequence
        What ``blocks.start`` takes, one at a time; of one shape for a language model.
    folder : path
        Made where it is not there. What it holds of an earlier run on the same input is not computed again; what of
        another, the caller must have removed.
    patterns, skip : sequence of str
        Which layers, as in `eckart.nn.surgery.layers_of`, by their names in the whole network.
    gradients : int
        How many of the batches, from the first on, also give gradients; 0 for a metric without a left side.
    damping : pair of float
        How much of the identity is added to L and to R, in medians of their diagonals: what was seen on a few windows
        is then less trusted. Predicted losses rise by it.
    keep_moments : bool
        Whether `Decomposition.moments` is wanted: n x n numbers for every distinct input.
    keep_ends : bool
        Whether what leaves the last block, and gradients at the first one's input, are wanted: two more files.
    seed : int
        Of the labels that are drawn.
    progress : callable, optional
        Called with a stage, blocks done and blocks in all.

    Returns
    -------
    Decomposition

    Raises
    ------
    ValueError
        No layers, no batches, or activations that are not finite.
    """
    if not batches:
        raise ValueError("there are no batches to calibrate with")
    if gradients < 0:
        raise ValueError(f"gradients is {gradients}, expected a number of batches, at least 0")
    folder, count, told = Path(folder), len(blocks.names), progress or (lambda stage, done, total: None)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(blocks, patterns, skip)
    few, samples = batches[:gradients], sum(map(blocks.samples, batches))
    started = max((i for i in range(count + 1) if (folder / f"stream-{i}.safetensors").exists()), default=0)
    for index in range(started, count):
        _forward(blocks, batches, len(few), folder, index, wanted, keep_ends)
        told("reading inputs", index + 1, count)
    for done, index in enumerate(range(count - 1, -1, -1)):
        if not (folder / f"block-{index}.safetensors").exists():
            block = blocks.load(index)
            layers = _layers_in(block, blocks.names[index], wanted)
            L = _backward(blocks, few, folder, index, block, layers, seed, keep_ends) if few else {}
            stacks = stacks_in(block)
            _write_block(folder, index, blocks.names[index], layers, stacks, L, samples, damping, keep_moments)
        for kind in ("inputs", "gradients", "grams"):
            (folder / f"{kind}-{index}.safetensors").unlink(missing_ok=True)
        told("decomposing", done + 1, count)
    return Decomposition(folder)


def forget(folder: str | os.PathLike[str]) -> None:
    """Delete what `decompose` has kept in a folder and what was measured of it, and nothing else."""
    for file in Path(folder).glob("weights-*.json"):
        file.unlink()
    for kind in ("stream", "inputs", "grams", "gradients", "moments", "block"):
        for file in Path(folder).glob(f"{kind}-*.safetensors"):
            file.unlink()


def _full_name(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _wanted(blocks: Blocks, patterns: Sequence[str], skip: Sequence[str]) -> set[str]:
    inside = tuple(_full_name(name, "") for name in blocks.names)
    every = [name for name, layer in blocks.model.named_modules() if is_matrix(layer) and name.startswith(inside)]
    if not every:
        kind = type(blocks.model).__name__
        raise ValueError(f"{kind} has no layer of a kind that can be compressed: Linear, Conv2d")
    return set(chosen(every, patterns, skip))


def _layers_in(block: nn.Module, prefix: str, wanted: set[str]) -> dict[str, Any]:
    return {name: layer for name, layer in block.named_modules() if _full_name(prefix, name) in wanted}


@torch.no_grad()
def _forward(
    blocks: Blocks,
    batches: Sequence[Any],
    few: int,
    folder: Path,
    index: int,
    wanted: set[str],
    keep_ends: bool,
) -> None:
    """Run a block over all batches; write its Grams, the inputs that `_backward` needs, then the next one's stream."""
    block, stream = blocks.load(index), load_file(folder / f"stream-{index}.safetensors") if index else {}
    layers = _layers_in(block, blocks.names[index], wanted)
    sums, same = dict[str, torch.Tensor](), dict[str, torch.Tensor]()

    def add(name: str, layer: Any, arguments: tuple[Any, ...]) -> None:
        same[name] = arguments[0]
        first = next(n for n, x in same.items() if x is arguments[0])  # q, k and v have one input: one sum for them
        if name != first:
            return
        x = rows_of(layer, arguments[0])
        # Around a first guess of the mean: what is summed in float32 must not cancel when the mean is removed.
        shift = sums.setdefault(f"{name}.shift", x.mean(0, dtype=torch.float64))
        x = x - shift.to(x.dtype)
        for kind, new in (("R", x.T @ x), ("s", x.sum(0)), ("rows", torch.tensor(len(x)))):
            key = f"{name}.{kind}"
            sums[key] = sums[key] + new if key in sums else new.double()

    outputs = []
    with hooked(layers, lambda name, layer, arguments, out: add(name, layer, arguments)):
        for j, batch in enumerate(batches):
            first = blocks.start(batch) if index == 0 or j == 0 else None  # (also finds out how blocks are called)
            out = blocks.run(index, block, stream["x"][j] if index else first)
            outputs += [out] if keep_ends or index < len(blocks.names) - 1 else []
    owner = {name: next(n for n, x in same.items() if x is same[name]) for name in same}
    write_whole(folder / f"grams-{index}.safetensors", sums, {"owner": json.dumps(owner)})
    if index and few:
        write_whole(folder / f"inputs-{index}.safetensors", {"x": stream["x"][:few].contiguous()})
    write_whole(folder / f"stream-{index + 1}.safetensors", {"x": torch.stack(outputs)} if outputs else {})
    (folder / f"stream-{index}.safetensors").unlink(missing_ok=True)


@torch.enable_grad()  # callers may well compute without
def _backward(
    blocks: Blocks,
    batches: Sequence[Any],
    folder: Path,
    index: int,
    block: nn.Module,
    layers: Mapping[str, Any],
    seed: int,
    keep_ends: bool,
) -> dict[str, torch.Tensor]:
    """Run a block backward over a few batches: E[g g'] of each layer. Writes the gradients at its inputs."""
    if not layers and not index and not keep_ends:
        return {}  # nothing here or before is asked for
    last = index == len(blocks.names) - 1
    inputs = load_file(folder / f"inputs-{index}.safetensors")["x"] if index else None
    incoming = None if last else load_file(folder / f"gradients-{index}.safetensors")["g"]
    sums, rows, outgoing = dict[str, torch.Tensor](), dict.fromkeys(layers, 0), []

    def add(name: str, layer: Any, g: torch.Tensor) -> None:
        g = outputs_as_rows(layer, g)
        sums[name] = sums[name] + g.T @ g if name in sums else (g.T @ g).double()
        rows[name] += len(g)

    def watch(name: str, layer: Any, arguments: tuple[Any, ...], out: torch.Tensor) -> None:
        if not out.requires_grad:
            out.requires_grad_()  # nothing before it does: inputs are tokens or data, and weights are not trained
        out.register_hook(lambda g: add(name, layer, g.detach()))

    with hooked(layers, watch):
        for j, batch in enumerate(batches):
            first = blocks.start(batch) if inputs is None or j == 0 else None
            hidden: Any = first if inputs is None else inputs[j]
            if index or keep_ends:
                hidden.requires_grad_()
            out = blocks.run(index, block, hidden)
            if incoming is None:
                # A generator a batch: the draws do not depend on how many batches there are.
                generator = torch.Generator().manual_seed(seed * 1_000_003 + j)
                blocks.draw(batch, out, generator).backward()
            else:
                out.backward(incoming[j])
            if index or keep_ends:
                outgoing.append(hidden.grad)
    if outgoing:
        write_whole(folder / f"gradients-{index - 1 if index else 'start'}.safetensors", {"g": torch.stack(outgoing)})
    return {name: total.cpu() / rows[name] for name, total in sums.items()}


Hook = Callable[[str, Any, tuple[Any, ...], torch.Tensor], torch.Tensor | None]


@contextmanager
def hooked(layers: Mapping[str, Any], hook: Hook) -> Iterator[None]:
    """Call ``hook(name, layer, arguments, output)`` whenever a layer runs meanwhile; what it gives is the output."""
    handles = [
        layer.register_forward_hook(lambda module, x, out, name=name: hook(name, module, x, out))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _write_block(
    folder: Path,
    index: int,
    prefix: str,
    layers: Mapping[str, Any],
    stacks: Mapping[str, int],
    L: dict[str, torch.Tensor],
    samples: int,
    damping: tuple[float, float],
    keep_moments: bool,
) -> None:
    file = folder / f"grams-{index}.safetensors"
    sums = load_file(str(file))
    with safe_open(str(file), framework="pt") as opened:
        owner = json.loads((opened.metadata() or {})["owner"])

    means, seconds = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    rows = {name: float(sums[f"{owner[name]}.rows"]) if name in owner else 0.0 for name in layers}
    for name in {owner[name]: None for name in layers if name in owner}:
        off = sums.pop(f"{name}.s") / rows[name]  # how far the mean is from the shift
        means[name] = sums[f"{name}.shift"] + off
        spread = sums.pop(f"{name}.R") / rows[name] - torch.outer(off, off)
        seconds[name] = spread + torch.outer(means[name], means[name])
    for of in alike(stacks, layers):
        share_evenly(of, rows)
        for known in (means, seconds, L):
            fill_in(of, known)
        owner |= {name: name for name in of if name in means}
    tensors, moments, facts = dict[str, torch.Tensor](), dict[str, torch.Tensor](), {}
    for name, layer in layers.items():
        full = _full_name(prefix, name)
        if name not in owner or (L and name not in L):
            raise ValueError(f"nothing passed through {full}: leave it out with skip")
        mean, second, left = means[owner[name]], seconds[owner[name]], L.get(name)
        if keep_moments and name == owner[name]:
            moments[full] = second
        W = weight_of(layer).double().cpu()
        # Rows a sample are counted in R: a convolution acts at every place, an expert on its share of tokens.
        R = (second if bias_of(layer) is None else second - torch.outer(mean, mean)) * (rows[name] / samples)
        if not bool(R.isfinite().all()) or (left is not None and not bool(left.isfinite().all())):
            raise ValueError(f"what passes through {full} is not finite: the model is damaged")
        left = None if left is None else damped(left, damping[0])
        found, squares = decomposed(W, left, damped(R, damping[1]))
        rank = int((found.squares > 0).sum())
        factors = found.cut(rank)
        tensors[f"{full}.squares"] = torch.from_numpy(squares[:rank].copy())
        tensors[f"{full}.left"] = factors.left.float().contiguous()
        tensors[f"{full}.right"] = factors.right.float().contiguous()
        tensors[f"{full}.mean"] = mean.float()
        shape = [factors.left.shape[0], factors.right.shape[0]]
        facts[full] = {"shape": shape, "bias": bias_of(layer) is not None, "transposed": is_conv1d(layer)}
    if keep_moments:
        owners = {_full_name(prefix, name): _full_name(prefix, owner[name]) for name in layers}
        write_whole(folder / f"moments-{index}.safetensors", moments, {"owner": json.dumps(owners)})
    facts |= {_full_name(prefix, stack): {"experts": count} for stack, count in stacks.items()}
    write_whole(folder / f"block-{index}.safetensors", tensors, {"layers": json.dumps(facts)})


def damped(metric: torch.Tensor, damping: float) -> torch.Tensor:
    """Add a multiple of the identity: `damping` medians of the diagonal."""
    # The median, because a few inputs of a transformer are hundreds of times larger than all others.
    return metric + damping * metric.diagonal().median() * torch.eye(len(metric), dtype=metric.dtype)
