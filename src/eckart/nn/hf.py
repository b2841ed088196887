"""Compressed models in transformers: ``import eckart``, then ``AutoModelForCausalLM.from_pretrained(folder)``.

transformers lets packages register a way of storing weights under a name, its "quantization method"; ours is "eckart",
and a model's config.json says which layer has which rank. Before weights are loaded the layers are replaced, after the
files were seen to hold factors of just these shapes: a layer that is missing would otherwise be filled with noise.
Experts of a mixture, if one of them has a rank, are layers in the files, and become so before (experts.py).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.nn.embedding import LowRankEmbedding, LowRankSoftmax, TiedSoftmax
from eckart.nn.experts import unstack
from eckart.nn.linear import unfolded
from eckart.nn.surgery import empty_low_rank, layers_of, replace_layer
from eckart.nn.weights import METHOD

__all__ = ["LowRankConfig", "LowRankLoader"]


class LowRankConfig(QuantizationConfigMixin):
    """What config.json says of a compressed model.

    Parameters
    ----------
    ranks : dict of str to int
        Rank of every layer that was replaced.
    pivoted : bool
        Form of the factors.
    groups : dict of str to dict, optional
        Sizes and ranks of the groups of an embedding and a softmax that were replaced.
    format_version : int
    """

    def __init__(
        self,
        ranks: dict[str, int],
        pivoted: bool,
        groups: dict[str, dict[str, list[int]]] | None = None,
        format_version: int = 1,
        quant_method: str = METHOD,
    ):
        if format_version != 1:
            raise ValueError(f"config.json: format_version is {format_version!r}, expected 1: update eckart")
        if not isinstance(ranks, dict) or not all(type(k) is int and k >= 0 for k in ranks.values()):
            raise ValueError("config.json: quantization_config.ranks is not a number for each layer")
        if not isinstance(pivoted, bool):
            raise ValueError(f"config.json: quantization_config.pivoted is {pivoted!r}, expected true or false")
        groups = groups or {}
        if not isinstance(groups, dict) or not all(map(_are_groups, groups.values())):
            raise ValueError("config.json: quantization_config.groups is not sizes and ranks for each matrix")
        self.groups = groups
        self.quant_method = quant_method  # type: ignore[assignment]  (a name of transformers' own, or any string)
        self.ranks, self.pivoted, self.format_version = ranks, pivoted, format_version


class LowRankLoader(HfQuantizer):
    """Puts empty layers of low rank into a model that transformers is about to fill."""

    quantization_config: LowRankConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to compress while loading: that takes a calibration."""
        if not self.pre_quantized:
            raise ValueError("this model is not compressed: eckart compress does that, loading does not")

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        layers, stacks = layers_of(model), dict[str, int]()
        if any(name not in layers for name in config.ranks):  # of experts: in the files they are layers, all of them
            stacks = unstack(model)
            layers = layers_of(model)
        for name, rank in config.ranks.items():
            if name not in layers:
                raise ValueError(f"config.json gives {name!r} a rank, and the model has no such layer")
            most = min(unfolded(layers[name].weight).shape)
            if rank > most:
                raise ValueError(f"config.json gives {name} rank {rank}, expected at most {most}")
            replace_layer(model, name, empty_low_rank(layers[name], rank, config.pivoted))
        for name, groups in config.groups.items():
            _put_groups(model, name, groups["sizes"], groups["ranks"], config.pivoted)
        _check_files(model, (*config.ranks, *config.groups, *stacks), checkpoint_files or [])

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        for name in [*(config.ranks if config.pivoted else ()), *config.groups]:
            order: torch.Tensor = model.get_submodule(name).order
            if not torch.equal(order.sort().values, torch.arange(len(order), dtype=order.dtype, device=order.device)):
                raise ValueError(f"{name}.order is no permutation: the model is damaged")
        return model

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  (typed as giving nothing)
        """Whether ``save_pretrained`` writes it as it is: yes."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore
        """Whether it can be trained: yes, factors are parameters."""
        return True


def _are_groups(groups: Any) -> bool:
    lists = [groups.get(key) for key in ("sizes", "ranks")] if isinstance(groups, dict) else [None]
    return all(isinstance(x, list) and x and all(type(k) is int and k >= 0 for k in x) for x in lists)


def _put_groups(model: Any, name: str, sizes: list[int], ranks: list[int], pivoted: bool) -> None:
    """Replace an embedding or a softmax, and the softmax that is tied to it."""
    layer: Any = dict(model.named_modules()).get(name)
    if type(layer) not in (nn.Embedding, nn.Linear):
        raise ValueError(f"config.json gives {name!r} groups, and the model has no such embedding or softmax")
    tokens, width = layer.weight.shape
    if sum(sizes) != tokens or len(sizes) != len(ranks):
        raise ValueError(
            f"config.json: the {len(ranks)} groups of {name} have sizes {sizes}, expected {tokens} together"
        )
    kind = LowRankEmbedding if type(layer) is nn.Embedding else LowRankSoftmax
    try:
        new = kind(width, sizes, ranks, pivoted, layer.weight.device, layer.weight.dtype)
    except ValueError as error:
        raise ValueError(f"config.json: {name}: {error}") from None
    replace_layer(model, name, new)
    # Tied parameters are a table of names, the sharing one first; transformers would put one in the other's place.
    ties = dict(model.all_tied_weights_keys)
    for pair in ties.items():
        if f"{name}.weight" in pair:
            (other,) = {x.removesuffix(".weight") for x in pair} - {name}
            if not isinstance(new, LowRankEmbedding) or type(model.get_submodule(other)) is not nn.Linear:
                raise ValueError(f"config.json: {name} is tied to {other}, expected an embedding tied to a softmax")
            replace_layer(model, other, TiedSoftmax(new))
            del model.all_tied_weights_keys[pair[0]]
            model._tied_weights_keys = {a: b for a, b in (model._tied_weights_keys or {}).items() if a != pair[0]}


def _check_files(model: nn.Module, names: tuple[str, ...], files: list[str]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    for name in names:
        for part, tensor in model.get_submodule(name).state_dict().items():
            if shapes.get(f"{name}.{part}") != tuple(tensor.shape):
                got = shapes.get(f"{name}.{part}", "not there")
                raise ValueError(f"{name}.{part} is {got} in the files, expected the shape {tuple(tensor.shape)}")


register_quantization_config(METHOD)(LowRankConfig)
register_quantizer(METHOD)(LowRankLoader)
