"""A compressed model's directory: what was not compressed is copied, factors take the dtype of what they replace.

With them go the plan, a certificate of what is known to be lost, and a model card that says both.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

import eckart
from eckart.nn.calibrate import Decomposition, Progress
from eckart.nn.compress import compressed_tensors
from eckart.nn.experts import UnstackedWeights
from eckart.nn.language import load_tokenizer
from eckart.nn.linear import folded, multiplied
from eckart.nn.output import copy_rest, replaced_whole, write_shards
from eckart.nn.plan import RankPlan
from eckart.nn.standalone import CODE, standalone_code, standalone_config
from eckart.nn.vocabulary import grouped_ranks, grouped_tensors
from eckart.nn.weights import METHOD, Weights, read_config

__all__ = ["Written", "check_form", "write_compressed", "write_trained"]


class Written(NamedTuple):
    """What a compressed model takes."""

    bytes_before: int
    bytes_after: int


def check_form(dense: bool, standalone: bool, embeddings: bool) -> None:
    """Refuse forms that no directory can have at once."""
    if dense and standalone:
        raise ValueError("dense=True needs no code beside the weights: leave out standalone=True, or dense=True")
    if embeddings and standalone:
        raise ValueError("a standalone model cannot have its embeddings compressed: leave out one of the two")


def write_compressed(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    found: Decomposition,
    plan: RankPlan,
    certificate: Mapping[str, Any],
    *,
    dense: bool = False,
    standalone: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write the compressed model.

    Parameters
    ----------
    model, out : path
        `out` is replaced whole, if `check_target` lets it.
    found : Decomposition
    plan : RankPlan
    certificate : mapping
        Kept as eckart.json.
    dense : bool
        Multiply the factors out: as large as the original, for programs that know nothing of factors.
    standalone : bool
        Put the code that transformers needs beside the weights: see `eckart.nn.standalone`.
    progress : callable, optional

    Returns
    -------
    Written

    Raises
    ------
    FileExistsError, OSError
        The target is something else, or the disk is full; nothing is left behind.
    ValueError
        `dense` and `standalone`: one needs no code, the other brings it. `standalone` and compressed embeddings or
        experts.
    """
    groups = {name: grouped_ranks(found, plan, name) for name in found.groups}
    check_form(dense, standalone, any(groups.values()))
    inside = tuple(f"{stack}." for stack in found.stacks)
    unstacked = any(layer.rank is not None for name, layer in plan.layers.items() if name.startswith(inside))
    if unstacked and standalone:
        raise ValueError(f"{model}: a standalone model cannot have its experts compressed: skip 'experts.*'")
    source, weights = Path(model), UnstackedWeights(model, found.stacks if unstacked else {})
    rows = {layer for of in found.groups.values() for layer in of.layers}
    ranks = {n: layer.rank for n, layer in plan.layers.items() if layer.rank is not None and n not in rows}
    with replaced_whole(out, weights.bytes()) as scratch:
        tensors = _tensors(weights, found, plan, dense, progress)
        write_shards(scratch, weights.restacked(tensors) if dense else tensors)
        copy_rest(source, scratch)
        config = read_config(model)
        if standalone:
            (scratch / CODE).write_text(standalone_code(config), "utf-8")
            config = standalone_config(config, ranks, plan.pivoted)
            # transformers chooses some tokenizers by the kind of model: from now on by what it has chosen
            with suppress(ValueError):  # there is none
                load_tokenizer(model).save_pretrained(scratch)
        elif not dense:
            config["quantization_config"] = {
                "quant_method": METHOD,
                "format_version": 1,
                "pivoted": plan.pivoted,
                "ranks": ranks,
            }
            cut = {name: {"sizes": of[0], "ranks": of[1]} for name, of in groups.items() if of}
            config["quantization_config"] |= {"groups": cut} if cut else {}
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (scratch / "eckart.json").write_text(json.dumps(certificate, indent=1) + "\n", "ascii")
        plan.save(scratch / "plan.json")
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", scratch / "README-original.md")
        (scratch / "README.md").write_text(_card(source.resolve().name, certificate, plan, dense, standalone), "utf-8")
    return Written(weights.bytes(), Weights(out).bytes())


def write_trained(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    trained: Mapping[str, torch.Tensor],
    certificate: Mapping[str, Any],
    said: str,
) -> None:
    """Write a compressed model with other numbers in some of its tensors.

    Parameters
    ----------
    model, out : path
        `out` is replaced whole, if `check_target` lets it; it may be `model` itself.
    trained : mapping of str to Tensor
        By name, of the shapes in the files, whose dtype they take.
    certificate : mapping
        Kept as eckart.json.
    said : str
        Added to the model card.

    Raises
    ------
    FileExistsError, OSError
        The target is something else, or the disk is full; nothing is left behind.
    """
    weights, source = Weights(model), Path(model)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in weights:
            old = weights.read(name)
            yield name, trained[name].detach().to(old).contiguous() if name in trained else old

    with replaced_whole(out, weights.bytes()) as scratch:
        write_shards(scratch, tensors())
        copy_rest(source, scratch)
        if read_config(model).get("model_type") == METHOD:  # standalone
            shutil.copyfile(source / CODE, scratch / CODE)
        (scratch / "eckart.json").write_text(json.dumps(certificate, indent=1) + "\n", "ascii")
        card = source / "README.md"
        (scratch / "README.md").write_text((card.read_text("utf-8") if card.is_file() else "") + said, "utf-8")


def _tensors(
    weights: Weights, found: Decomposition, plan: RankPlan, dense: bool, progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the new model: copied, or in place of a layer's weight and bias its factors."""
    done, grouped = 0, set[str]()
    sharing = {of.tied: name for name, of in found.groups.items()}
    for name in weights:
        layer, _, part = name.rpartition(".")
        matrix = sharing.get(layer, layer)
        if matrix in found.groups and grouped_ranks(found, plan, matrix):
            if dense or matrix not in grouped:  # (files may have tied matrices twice)
                weight, to = weights.read(name), layer if dense else matrix
                for new, x in grouped_tensors(weight, found, plan, matrix, dense).items():
                    yield f"{to}.{new}", x if x.dtype == torch.int32 else x.to(weight.dtype)
            grouped.add(matrix)
            continue
        if layer not in plan.layers or plan.layers[layer].rank is None:
            yield name, weights.read(name)
            continue
        if part != "weight":
            continue  # the bias comes with it
        weight = weights.read(name)
        bias = weights.read(f"{layer}.bias") if f"{layer}.bias" in weights else None
        tensors = compressed_tensors(weight, bias, found, layer, plan)
        if dense:
            order = tensors.pop("order", None)
            product = multiplied(tensors.pop("left"), tensors.pop("right").flatten(1), order)
            transposed = found.layers[layer].transposed
            tensors["weight"] = product.T if transposed else folded(product, weight.shape)
        for new, tensor in tensors.items():
            yield f"{layer}.{new}", (tensor if tensor.dtype == torch.int32 else tensor.to(weight.dtype)).contiguous()
        done += 1
        if progress:
            progress("writing", done, sum(x.rank is not None for x in plan.layers.values()))


def _card(name: str, certificate: Mapping[str, Any], plan: RankPlan, dense: bool, standalone: bool) -> str:
    """Write the model card: what this is, what was lost as far as is known, how to load it."""
    cut = [layer for layer in plan.layers.values() if layer.rank is not None]
    worst = sorted(plan.layers.items(), key=lambda named: -named[1].loss)[:5]
    form = "pivoted factors, k (m + n - k) numbers" if plan.pivoted else "two factors, (m + n) k numbers"
    load = "" if dense or standalone else "import eckart  # teaches transformers the factors\n"
    code = f", trust_remote_code=True)  # runs {CODE}, which is in it" if standalone else ")"
    rows = "\n".join(f"| {key} | {layer.rank or 'as it is'} | {layer.loss:.3g} |" for key, layer in worst)
    return f"""---
library_name: transformers
base_model: {json.dumps(name)}
tags: [low-rank, eckart]
---

# {name}, {plan.keep:.3g} of the numbers in its compressed layers

Compressed by eckart {eckart.__version__}: {len(cut)} of {len(plan.layers)} layers have a lower rank
({"multiplied out again: dense weights" if dense else form}). The terms of the original hold.

```python
{load}from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this directory"{code}
```

Predicted rise of the loss on text like that of the calibration: {plan.loss:.3g} nats a token, to second order, layer by
layer. It is a prediction: measure with `eckart perplexity` on two texts. Layers that cost most:

| layer | rank | predicted rise |
|---|---|---|
{rows}

Certificate:

```json
{json.dumps(certificate, indent=1)}
```

Every rank is in plan.json.
"""
