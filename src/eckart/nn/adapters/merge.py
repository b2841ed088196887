"""An adapter merged into a model directory: tensors pass through one shard at a time.

    W'  =  round( c (W + s B A) )       in the dtype of W

What rounding takes is measured beside what merging changes: |W' - c (W + s B A)| / |c (W + s B A) - W|. In 16 bits an
update far smaller than its weight is partly lost. Embedding and softmax that were one tensor are two where one of them
is adapted, and config.json then says so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.nn.adapters.adapter import Adapter, check_fits
from eckart.nn.adapters.files import CONFIG, load_adapter
from eckart.nn.adapters.lora import adapted_matrix
from eckart.nn.calibrate import Progress
from eckart.nn.output import check_target, copy_rest, replaced_whole, write_shards
from eckart.nn.skeleton import Skeleton
from eckart.nn.surgery import is_transposed

__all__ = ["merge_directory", "merged_weight", "untied_parameters"]


def merge_directory(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge an adapter into a model directory.

    Parameters
    ----------
    base : path
        Directory of a transformers model with safetensors, not quantized.
    adapter : path
        Directory of an adapter, by eckart or by peft.
    out : path
        Written whole or not at all; what eckart wrote is replaced.
    progress : callable, optional
        Called with a stage, layers done and layers in all.

    Returns
    -------
    dict
        The certificate: layers, which were untied, and ``rounding``, what was lost of the update beside its size: in
        all and in the worst layer. Also kept as eckart.json.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError, ValueError
        The two do not fit, the base is quantized or damaged, a tie cannot be undone, or the target is something else.
    """
    check_target(out)
    updates, model = load_adapter(adapter), Skeleton(base)
    kinds = check_fits(updates, model.network, lambda name: model.read(f"{name}.weight"))
    for name in kinds:
        model.source(f"{name}.weight")
    untied = untied_parameters(model, [f"{name}.weight" for name in kinds])
    separate = {name: model.source(name) for name in untied if name not in model.weights}  # need a tensor of their own
    more = sum(model.weights.bytes_of(source) for source in separate.values())
    rounding = dict[str, tuple[float, float]]()

    def merged(name: str, weight: torch.Tensor) -> torch.Tensor:
        new, lost, changed = merged_weight(weight, updates, name, is_transposed(kinds[name]))
        rounding[name] = lost, changed
        if progress:
            progress("merging", len(rounding), len(kinds))
        return new

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for stored in model.weights:
            weight = model.weights.read(stored)
            for name in sorted({stored, *(name for name, source in separate.items() if source == stored)}):
                layer = name.removesuffix(".weight")
                # (cloned: a file must not hold one tensor under two names)
                yield name, merged(layer, weight) if layer in kinds and name != layer else weight.clone()

    with replaced_whole(out, model.weights.bytes() + more) as scratch:
        write_shards(scratch, tensors())
        copy_rest(Path(base), scratch)
        (scratch / CONFIG).unlink(missing_ok=True)  # or transformers would add an adapter that stands beside the base
        if untied:
            config = model.config | {"tie_word_embeddings": False}
            (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        lost, changed = (math.sqrt(sum(x[i] for x in rounding.values())) for i in (0, 1))
        shares = {name: math.sqrt(a / b) if b else 0.0 for name, (a, b) in rounding.items()}
        worst = max(shares, key=lambda name: shares[name])
        name = Path(adapter).resolve().name
        certificate = {
            "eckart": eckart.__version__,
            "base": Path(base).resolve().name,
            "adapter": name,
            "layers": len(kinds),
            "untied": [name.removesuffix(".weight") for name in untied],
            "rounding": {"all": lost / changed if changed else 0.0, "worst": shares[worst], "worst_layer": worst},
        }
        (scratch / "eckart.json").write_text(json.dumps(certificate, indent=1) + "\n", "ascii")
        card = Path(base) / "README.md"
        said = f"\nThe adapter {name} was merged into {len(kinds)} layers by eckart {eckart.__version__}.\n"
        (scratch / "README.md").write_text((card.read_text("utf-8") if card.is_file() else "") + said, "utf-8")
    return certificate


def merged_weight(
    weight: torch.Tensor, adapter: Adapter, name: str, transposed: bool
) -> tuple[torch.Tensor, float, float]:
    """Merge one layer.

    Parameters
    ----------
    weight : Tensor
        As the layer stores it.
    adapter : Adapter
    name : str
        Of one of its layers.
    transposed : bool
        Whether the weight is stored as (n, m).

    Returns
    -------
    Tensor
        Like `weight`.
    float, float
        Squared sizes of what rounding took, and of what merging changed.
    """
    update, dtype = adapter.layers[name], torch.promote_types(weight.dtype, torch.float32)
    W = (weight.T if transposed else weight.flatten(1)).to(dtype)
    A, B = update.factors.right.T.to(dtype), update.factors.left.to(dtype)
    magnitude = None if update.magnitude is None else update.magnitude.to(dtype)
    exact = adapted_matrix(W, A, B, adapter.scale(name), magnitude)
    rounded = exact.to(weight.dtype)
    if not bool(rounded.isfinite().all()):
        raise ValueError(f"{name}: what merging gives does not fit {weight.dtype}: the adapter is of another model")
    lost, changed = float((rounded.to(dtype) - exact).square().sum()), float((exact - W).square().sum())
    stored = rounded.T if transposed else rounded.reshape(weight.shape)
    return stored.contiguous(), lost, changed


def untied_parameters(model: Skeleton, changed: list[str]) -> list[str]:
    """Find the parameters that share a tensor now, and must not where some of them change.

    Raises
    ------
    ValueError
        The model would tie them again, or its files hold different numbers for what is tied.
    """
    untied = sorted({name for one in changed if model.tied_to(one) for name in (one, *model.tied_to(one))})
    again = Skeleton(model.folder, untied=True) if untied else model
    for name in untied:
        if left := again.tied_to(name):
            raise ValueError(
                f"{name} shares its numbers with {min(left)} whatever config.json says, so that one cannot change "
                "alone: leave that layer out of the adapter"
            )
        stored = sorted({name, *model.tied_to(name)} & set(model.weights))
        if any(not torch.equal(model.read(stored[0]), model.read(other)) for other in stored[1:]):
            raise ValueError(f"{model.folder}: {stored[0]} is tied to a tensor that is stored with other numbers")
    return untied
