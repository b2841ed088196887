"""LoRA: a frozen layer and a trained update of low rank beside it.

    y = W x + s B A x + b,                                s = alpha / r,  or alpha / sqrt(r) for rsLoRA
    y = c (W x + s B A x) + b,  c = g / |W + s B A|       DoRA: g (m) is trained, |.| the norms of the rows

W is the (m, n) matrix of a linear layer, GPT-2's Conv1D, a convolution (on patches) or an embedding (on tokens as unit
vectors). It keeps its dtype, A and B are float32. Norms count as constants in gradients.

Two layers may share one weight, as embedding and softmax often do. Each gets an update of its own; a weight is never
changed in place, so what is done to one of them leaves the other as it was, and merging unties them.

Sources: Hu et al. 2021, "LoRA"; Kalajdzievski 2023, "rsLoRA"; Liu et al. 2024, "DoRA".
Symbols: W (m x n), A (r x n), B (m x r), s scale, g magnitude. See docs/notation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from eckart.nn.adapters.init import Init, zero_b
from eckart.nn.surgery import is_matrix, is_transposed, layers_of, matches, matrix_of, replace_layer

__all__ = ["LoRA", "adapted_layers", "adapted_matrix", "add_lora", "lora_parameters", "merge_lora"]


class LoRA(nn.Module):
    """A frozen layer with an update of low rank, which is 0 until its factors are given.

    Parameters
    ----------
    base : Module
        One of `eckart.nn.surgery.layers_of`, embeddings included. It is frozen, and stays where it is.
    rank : int
        r, at least 1.
    alpha : float
        Above 0.
    rslora : bool
        Whether the scale is alpha / sqrt(r).
    dora : bool
        Whether rows have trained magnitudes; those of the weight at first.

    Attributes
    ----------
    A : Parameter of shape (r, n)
    B : Parameter of shape (m, r)
    magnitude : Parameter of shape (m,), or None
    moved : bool
        Whether s B A was taken out of the base's weight at first; these are then kept as `A_start` and `B_start`.
    scale : float
    """

    magnitude: nn.Parameter | None
    A_start: torch.Tensor
    B_start: torch.Tensor

    def __init__(self, base: Any, rank: int, alpha: float, *, rslora: bool = False, dora: bool = False) -> None:
        super().__init__()
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"rank is {rank} and alpha {alpha}, expected at least 1 and above 0")
        W = matrix_of(base)
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        like: dict[str, Any] = {"device": W.device, "dtype": torch.promote_types(W.dtype, torch.float32)}
        self.A = nn.Parameter(torch.zeros(rank, W.shape[1], **like))
        self.B = nn.Parameter(torch.zeros(W.shape[0], rank, **like))
        self.magnitude = nn.Parameter(row_norms(W.to(like["dtype"]))) if dora else None
        self.moved = False

    def begin(self, init: Init, known: torch.Tensor | None = None, generator: torch.Generator | None = None) -> None:
        """Fill A and B; the base gets a new weight where the way to begin takes a part of it out."""
        active = 1 if isinstance(self.base, nn.Embedding) else None
        W = matrix_of(self.base)
        A, B, rest = init(W, self.rank, self.scale, known=known, active=active, generator=generator)
        with torch.no_grad():
            self.A.copy_(A)
            self.B.copy_(B)
        if rest is not None:
            self.register_buffer("A_start", self.A.detach().clone())
            self.register_buffer("B_start", self.B.detach().clone())
            self.moved = True
            # A new tensor: another layer may share the old one.
            self.base.weight = nn.Parameter(_as_stored(self.base, rest), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        base, W = self.base, self.base.weight
        linear = self.magnitude is None and not isinstance(base, nn.Embedding | nn.Conv2d)
        watched = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        hooked = "forward" in vars(base) or watched
        frozen = not W.requires_grad and (self.bias is None or not self.bias.requires_grad)
        one = x.dtype == W.dtype == self.A.dtype and not torch.is_autocast_enabled(x.device.type)
        if linear and one and frozen and not hooked:
            return _Product.apply(x, matrix_of(base), self.bias, self.A, self.B, self.scale)
        return self.added(base(x), x)

    def added(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Give what the layer makes of x, from what its base makes of it."""
        if self.magnitude is None and not isinstance(self.base, nn.Embedding | nn.Conv2d):
            casts = torch.is_autocast_enabled(y.device.type)
            z = F.linear(x if casts else x.to(self.A.dtype), self.A)
            if casts or y.dtype == z.dtype:  # in one product, which goes through y once
                rows = torch.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, self.rank), self.B.T, alpha=self.scale)
                return rows.view_as(y).to(y.dtype)
        more = self.scale * self._update(x)
        if self.magnitude is None:
            return (y + more).to(y.dtype)
        with torch.no_grad():
            W = matrix_of(self.base).to(self.A.dtype)
            norms = row_norms(W + self.scale * (self.B @ self.A))
        c, b = self.magnitude / norms, self.bias
        if isinstance(self.base, nn.Conv2d):
            c, b = c[:, None, None], None if b is None else b[:, None, None]
        # (written so that c = 1 changes no bit of y)
        return (y + (c - 1) * (y if b is None else y - b) + c * more).to(y.dtype)

    def _update(self, x: torch.Tensor) -> torch.Tensor:
        """Give B A x."""
        base = self.base
        if isinstance(base, nn.Embedding):
            return F.linear(F.embedding(x, self.A.T, base.padding_idx), self.B)
        x = x.to(self.A.dtype)
        if isinstance(base, nn.Conv2d):
            kernels = self.A.unflatten(1, base.weight.shape[1:])
            padding: Any = base.padding
            z = F.conv2d(x, kernels, None, base.stride, padding, base.dilation)
            return F.conv2d(z, self.B[:, :, None, None])
        return F.linear(F.linear(x, self.A), self.B)

    @property
    def weight(self) -> torch.Tensor:
        """What an ordinary layer would hold, made anew each time: in the base's layout and dtype."""
        W = adapted_matrix(matrix_of(self.base).to(self.A.dtype), self.A, self.B, self.scale, self.magnitude)
        return _as_stored(self.base, W.to(self.base.weight.dtype))

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's, which an update leaves as it is."""
        return getattr(self.base, "bias", None)  # an embedding has none

    def extra_repr(self) -> str:
        """What `print` shows."""
        kind = ("rsLoRA" if self.rslora else "LoRA") if self.magnitude is None else "DoRA"
        return f"rank={self.rank}, alpha={self.alpha:g}, {kind}"


class _Product(torch.autograd.Function):
    """y = W x + b + s B A x of a frozen W, and its gradients, with every sum made in a product.

    No tensor of the size of x or y is made only to be added to another: what a step of training spends beside its
    products is mostly passes over such tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor, s: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        z, y = rows @ A.T, F.linear(rows, W, b)
        y.addmm_(z, B.T, alpha=s)
        ctx.save_for_backward(rows, z, W, A, B)
        ctx.scale, ctx.shape = s, x.shape
        return y.view(*x.shape[:-1], len(W))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        rows, z, W, A, B = ctx.saved_tensors
        dy = grad_outputs[0].reshape(-1, len(W))
        dz = (dy @ B).mul_(ctx.scale)
        dx = (dy @ W).addmm_(dz, A).view(ctx.shape) if ctx.needs_input_grad[0] else None
        dA = dz.T @ rows if ctx.needs_input_grad[3] else None
        dB = (dy.T @ z).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return dx, None, None, dA, dB, None


def row_norms(W: torch.Tensor) -> torch.Tensor:
    """Norms of the rows, (m,); a row of zeros has the smallest that can be divided by."""
    return W.norm(dim=1).clamp_min(torch.finfo(W.dtype).tiny)


def adapted_matrix(
    W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float, magnitude: torch.Tensor | None
) -> torch.Tensor:
    """Merge an update into its matrix, in the dtype of these: c (W + s B A), (m, n).

    Examples
    --------
    >>> adapted_matrix(torch.eye(2), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [0.0]]), 0.5, None)
    tensor([[1., 1.],
            [0., 1.]])
    """
    moved = W + scale * (B @ A)
    return moved if magnitude is None else (magnitude / row_norms(moved))[:, None] * moved


def add_lora(
    network: nn.Module,
    rank: int = 16,
    alpha: float = 32.0,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    *,
    ranks: Mapping[str, int] | None = None,
    rslora: bool = False,
    dora: bool = False,
    init: Init = zero_b,
    known: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> dict[str, LoRA]:
    """Freeze a network and give some of its layers updates to train, in place. What it computes stays as it was.

    Parameters
    ----------
    network : Module
    rank : int
        r, 1 to min(m, n) of each layer.
    alpha : float
        The update is scaled by alpha / r.
    patterns, skip : sequence of str
        Names of layers, or their last parts, with ``*`` for anything. A bare ``*`` takes all linear layers and
        convolutions but the softmax; it and embeddings are adapted where they are named.
    ranks : mapping of str to int, optional
        Other ranks, by pattern; the first that matches counts.
    rslora : bool
        Scale by alpha / sqrt(r).
    dora : bool
        Train magnitudes of rows as well.
    init : callable
        One of `eckart.nn.adapters.init`. Those that change the base round what they leave to its dtype.
    known : mapping of str to Tensor, optional
        What `init` needs to know, by layer.
    seed : int
        Of random factors.

    Returns
    -------
    dict of str to LoRA
        The new layers, by name.

    Raises
    ------
    ValueError
        A pattern that matches nothing, or a layer that cannot be adapted; a rank out of range; a network that has
        updates already. The network is then as it was.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> x, layers = torch.ones(1, 8), add_lora(network, rank=2)
    >>> list(layers), sum(p.numel() for p in network.parameters() if p.requires_grad)
    (['0', '2'], 88)
    """
    layers = adaptable_layers(network, patterns, skip)
    ranks = dict(ranks or {})
    for pattern in ranks:
        if not any(matches(name, pattern) for name in layers):
            raise ValueError(f"ranks: no layer that is adapted matches {pattern!r}")
    chosen = {name: next((ranks[p] for p in ranks if matches(name, p)), rank) for name in layers}
    for name, layer in layers.items():
        most = min(matrix_of(layer).shape)
        if not 1 <= chosen[name] <= most:
            raise ValueError(f"the rank of {name} is {chosen[name]}, expected 1 to {most}: give it another, or skip it")
    for name in known or {}:
        if name not in layers:
            raise ValueError(f"something is known of {name!r}, which is not adapted")
    frozen = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    weights = {name: layer.weight for name, layer in layers.items()}
    generator, new = torch.Generator().manual_seed(seed), {}
    try:
        for name, layer in layers.items():
            new[name] = LoRA(layer, chosen[name], alpha, rslora=rslora, dora=dora)
            new[name].begin(init, None if known is None else known.get(name), generator)
    except BaseException as error:
        for name, layer in layers.items():
            layer.weight = weights[name]
        for parameter, before in frozen:
            parameter.requires_grad_(before)
        if isinstance(error, ValueError) and new:
            raise ValueError(f"{list(new)[-1]}: {error}") from None
        raise
    network.requires_grad_(False)
    for name, layer in new.items():
        replace_layer(network, name, layer)
    return new


def adaptable_layers(network: nn.Module, patterns: Sequence[str], skip: Sequence[str]) -> dict[str, Any]:
    """Find the layers to adapt: as `layers_of`, but a name for a layer that cannot be adapted is an error."""
    if adapted_layers(network):
        raise ValueError("the network has updates already: merge them first")
    for name, module in network.named_modules():
        asked = [p for p in patterns if p != "*" and matches(name, p)]
        own = next(module.parameters(recurse=False), None)
        if asked and own is not None and not any(matches(name, p) for p in skip) and not is_matrix(module, True):
            more = ", groups or other padding" if isinstance(module, nn.Conv2d) else ""
            raise ValueError(
                f"{name} is a layer of the kind {type(module).__name__}{more}, which cannot be adapted: skip it"
            )
    layers = layers_of(network, patterns, skip, embeddings=True)
    softmax = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None  # type: ignore
    named = [pattern for pattern in patterns if pattern != "*"]
    found = {
        name: layer
        for name, layer in layers.items()
        if any(matches(name, p) for p in named) or not (layer is softmax or isinstance(layer, nn.Embedding))
    }
    if not found:
        raise ValueError("there is no layer to adapt: a linear one or a convolution, or an embedding that is named")
    return found


def adapted_layers(network: nn.Module) -> dict[str, LoRA]:
    """Give the layers of a network that have updates, by the names they had without."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoRA)}


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Give what is trained, by name: A, B and magnitudes."""
    return {
        f"{name}.{part}": parameter
        for name, layer in adapted_layers(network).items()
        for part, parameter in layer.named_parameters(recurse=False)
    }


@torch.no_grad()
def merge_lora(network: nn.Module) -> list[str]:
    """Put every update into its layer's weight, in place; the layers are then what they were before `add_lora`.

    A weight that two layers shared belongs to one of them afterwards, and the other keeps the old one: a transformers
    model is then told that they are not tied.

    Returns
    -------
    list of str
        Layers that were untied.

    Raises
    ------
    ValueError
        There is no update.
    """
    layers = adapted_layers(network)
    if not layers:
        raise ValueError("the network has no updates to merge")
    owners: dict[int, int] = {}
    for parameter in (p for _, p in network.named_parameters(remove_duplicate=False)):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    untied = [name for name, layer in layers.items() if owners[id(layer.base.weight)] > 1]
    for name, layer in layers.items():
        layer.base.weight = nn.Parameter(layer.weight, requires_grad=False)
        replace_layer(network, name, layer.base)
    config: Any = getattr(network, "config", None)
    if untied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    return untied


def _as_stored(layer: Any, W: torch.Tensor) -> torch.Tensor:
    """A matrix in the layout of a layer's weight."""
    return W.T.contiguous() if is_transposed(layer) else W.reshape(layer.weight.shape)
