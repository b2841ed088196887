"""Compressing a model directory into another: tensors pass through one shard at a time.

What was not compressed is copied as it is; factors take the dtype of the weights they replace. The new directory is
written beside the target and renamed into its place, so that there is never half a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

import eckart
from eckart.core.replace import flush, locked, scratch_of, swap, sweep
from eckart.nn.blocks import LanguageBlocks
from eckart.nn.calibrate import Decomposition, Progress, decompose, forget
from eckart.nn.compress import compressed_tensors
from eckart.nn.language import load_model, load_tokenizer
from eckart.nn.linear import folded, multiplied
from eckart.nn.plan import RankPlan, check_keep, plan_ranks
from eckart.nn.standalone import CODE, standalone_code, standalone_config
from eckart.nn.vocabulary import check_ends, decompose_vocabulary, grouped_ranks, grouped_tensors
from eckart.nn.weigh import measured_weights
from eckart.nn.weights import METHOD, Weights, compressed_by, read_config

__all__ = [
    "check_target",
    "compress_model",
    "copy_rest",
    "decompose_directory",
    "planned_bytes",
    "replaced_whole",
    "weights_of_layers",
    "work_beside",
    "write_compressed",
    "write_shards",
    "write_trained",
]

_SHARD = 1 << 30  # bytes a file: what is in memory while it is written
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")  # tokenizers, templates, terms; no code


class Written(NamedTuple):
    """What a compressed model takes."""

    bytes_before: int
    bytes_after: int


def work_beside(out: str | os.PathLike[str]) -> Path:
    """Where the decomposed layers of a run that writes `out` are kept until it is done."""
    target = Path(os.path.realpath(out))
    return target.with_name(f".{target.name}.eckart-work")


def compress_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    windows: torch.Tensor,
    keep: float = 0.8,
    *,
    plan: str | os.PathLike[str] | None = None,
    work: str | os.PathLike[str] | None = None,
    patterns: tuple[str, ...] = ("*",),
    skip: tuple[str, ...] = (),
    gradients: int = 8,
    pivoted: bool = True,
    multiple: int = 1,
    least: int = 1,
    weigh: int = 0,
    dense: bool = False,
    standalone: bool = False,
    embeddings: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress a causal language model from a directory into another.

    Parameters
    ----------
    model, out : path
        `out` is written whole or not at all; a compressed model that is there is replaced.
    windows : (windows, context) int64
        Tokens to calibrate with, as `eckart.nn.language.windows_of` gives them.
    keep : float
        Share of the numbers of the compressed layers that stays; those in the model's blocks.
    plan : path, optional
        Ranks from a file, in place of `keep`, `pivoted`, `multiple` and `least`.
    work : path, optional
        See `decompose_directory`; by default beside `out`, and deleted at the end.
    patterns, skip, gradients, seed, progress
        As in `eckart.nn.calibrate.decompose`.
    pivoted, multiple, least
        As in `eckart.nn.plan.plan_ranks`.
    weigh : int
        Tokens of the first window to measure layer weights on, which takes a forward pass a layer and the whole model
        in memory; 0 for none. See `eckart.nn.weigh`.
    dense, standalone : bool
        As in `write_compressed`.
    embeddings : bool
        As in `decompose_directory`; `keep` then is of their numbers too.

    Returns
    -------
    dict
        The certificate: predicted rise of the loss, shares kept, bytes.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError, ValueError
        See `decompose_directory`, `eckart.nn.plan.plan_ranks` and `write_compressed`.
    """
    check_target(out)
    check_keep(keep)
    _check_form(dense, standalone)
    folder = work_beside(out) if work is None else Path(work)
    wanted: dict[str, Any] = {"patterns": patterns, "skip": skip, "gradients": gradients, "seed": seed}
    found = decompose_directory(model, windows, folder, embeddings=embeddings, progress=progress, **wanted)
    if plan is None:
        weights = weights_of_layers(model, found, windows[0, :weigh], progress) if weigh else None
        chosen = plan_ranks(found.layers, keep, weights=weights, pivoted=pivoted, multiple=multiple, least=least)
    else:
        chosen = RankPlan.load(plan, found.layers)
    tensors = Weights(model)
    numbers = sum(math.prod(tensors.shape(name)) for name in tensors)
    saved = sum(x.dense - x.numbers for x in chosen.layers.values())
    for name, of in found.groups.items():  # the order of groups that stay as they are is in no layer's numbers
        if grouped_ranks(found, chosen, name):
            saved -= sum(x.shape[0] for x in map(chosen.layers.__getitem__, of.layers) if x.rank is None)
    certificate: dict[str, Any] = {
        "eckart": eckart.__version__,
        "keep": chosen.keep,
        "keep_of_model": 1 - saved / numbers,
        "layers": len(chosen.layers),
        "as_they_are": sum(x.rank is None for x in chosen.layers.values()),
        "pivoted": chosen.pivoted,
        "weighed": weigh,
        "dense": dense,
        "standalone": standalone,
        "predicted_loss": chosen.loss,
        "calibration": {"windows": len(windows), "context": windows.shape[1], "gradients": gradients, "seed": seed},
    }
    form = {"dense": dense, "standalone": standalone}
    certificate |= write_compressed(model, out, found, chosen, certificate, **form, progress=progress)._asdict()
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return certificate


def planned_bytes(model: str | os.PathLike[str], plan: RankPlan) -> int:
    """Say how large the files of a model will be, compressed by a plan: to the length of their headers."""
    weights = Weights(model)
    size = weights.bytes()
    for name, layer in plan.layers.items():
        if layer.rank is not None:
            number = weights.bytes_of(f"{name}.weight") // layer.dense
            order = layer.shape[0] if plan.pivoted else 0  # 4 bytes each
            size -= (layer.dense - layer.numbers + order) * number - 4 * order
    return size


def weights_of_layers(
    model: str | os.PathLike[str], found: Decomposition, window: torch.Tensor, progress: Progress | None = None
) -> dict[str, float]:
    """Measure the weights of layers, or read what was measured before and kept beside the decomposed layers.

    Parameters
    ----------
    model : path
    found : Decomposition
        Of that model.
    window : (context,) int64
        Tokens. See `eckart.nn.weigh`.
    progress : callable, optional
    """
    file = found.folder / f"weights-{len(window)}.json"
    if not file.exists():
        weights = measured_weights(load_model(model), found, window, progress=progress)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(weights), "ascii")
        os.replace(part, file)
    return json.loads(file.read_bytes())


def check_target(out: str | os.PathLike[str]) -> Path:
    """Refuse a target that is something else than a compressed model or an empty directory.

    Raises
    ------
    FileExistsError
    """
    target = Path(os.path.realpath(out))
    if target.is_dir() and any(target.iterdir()):
        try:
            method = compressed_by(read_config(target))
        except (ValueError, OSError):
            method = None
        if method != METHOD and not (method is None and (target / "eckart.json").exists()):
            raise FileExistsError(f"{out} holds something else than what eckart wrote: choose a new name")
    elif target.exists() and not target.is_dir():
        raise FileExistsError(f"{out} is a file: choose a new name for a directory")
    return target


def decompose_directory(
    model: str | os.PathLike[str],
    windows: torch.Tensor,
    work: str | os.PathLike[str],
    *,
    patterns: tuple[str, ...] = ("*",),
    skip: tuple[str, ...] = (),
    gradients: int = 8,
    keep_moments: bool = False,
    embeddings: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Decomposition:
    """Decompose the layers in the blocks of a causal language model.

    Parameters
    ----------
    model : path
        Directory with config.json and safetensors.
    windows : (windows, context) int64
        Tokens to calibrate with.
    work : path
        Where the decomposed layers are kept: about twice the size of the layers in float32, and while it runs the
        blocks' inputs. A run that was killed goes on from there, and the same input does nothing again; what
        is there of another input is deleted.
    patterns, skip, gradients, keep_moments, seed, progress
        As in `eckart.nn.calibrate.decompose`.
    embeddings : bool
        Whether the embedding and the softmax are decomposed too, see `eckart.nn.vocabulary`; with gradients only.

    Returns
    -------
    Decomposition

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        No such model, one that is damaged or compressed already, a `work` that holds something else, or no space on
        the disk.
    """
    config = read_config(model)
    method = compressed_by(config)
    if method is not None:
        raise ValueError(f"{model} is quantized or compressed already, by {method}: start from the original")
    work = Path(work)
    input_file = work / "input.json"
    if work.exists() and any(work.iterdir()) and not input_file.exists():
        raise FileExistsError(f"{work} holds something else than decomposed layers: choose a new name")
    blocks = LanguageBlocks(model)
    if embeddings:
        check_ends(blocks.model, gradients)
    wanted: dict[str, Any] = {"patterns": patterns, "skip": skip, "gradients": gradients, "seed": seed}
    wanted |= {"keep_moments": True} if keep_moments else {}
    wanted |= {"keep_ends": True} if embeddings else {}
    facts = {"eckart": eckart.__version__, **wanted}
    facts |= {"tokens": hashlib.sha256(windows.numpy().tobytes()).hexdigest(), "shape": list(windows.shape)}
    facts |= {"config": config, "weights": Weights(model).fingerprint()}
    text = json.dumps(facts, sort_keys=True)
    if input_file.exists() and input_file.read_text() != text:
        forget(work)
    work.mkdir(parents=True, exist_ok=True)
    input_file.write_text(text)
    batches = list(windows[:, None])
    found = decompose(blocks, batches, work, progress=progress, **wanted)
    return decompose_vocabulary(blocks, batches, work, progress=progress) if embeddings else found


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
        `dense` and `standalone`: one needs no code, the other brings it.
    """
    _check_form(dense, standalone)
    weights, source = Weights(model), Path(model)
    groups = {name: grouped_ranks(found, plan, name) for name in found.groups}
    rows = {layer for of in found.groups.values() for layer in of.layers}
    ranks = {n: layer.rank for n, layer in plan.layers.items() if layer.rank is not None and n not in rows}
    with replaced_whole(out, weights.bytes()) as scratch:
        write_shards(scratch, _tensors(weights, found, plan, dense, progress))
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


@contextmanager
def replaced_whole(
    out: str | os.PathLike[str], size: int, check: Callable[[str | os.PathLike[str]], Path] = check_target
) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `out` if all goes well and else is deleted.

    Parameters
    ----------
    out : path
    size : int
        Bytes that it may take, about.
    check : callable
        Gives the real path of `out`, or refuses it: see `check_target`.

    Raises
    ------
    FileExistsError, OSError
        The target is something else, or the disk has too little space left.
    """
    target = check(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < int(size * 1.01) + (8 << 20):  # with an index and cards
        raise OSError(f"{out}: the disk has too little space left, the model may take {size / 1e6:,.0f} MB")
    with ExitStack() as held:
        with locked(target.parent):
            sweep(target)
            scratch = scratch_of(target)
            scratch.mkdir()
            held.enter_context(locked(scratch))
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch
        for file in scratch.iterdir():
            flush(file)
        flush(scratch)
        with locked(target.parent):
            check(out)
            swap(scratch, target)


def copy_rest(source: Path, scratch: Path) -> None:
    """Copy what stands beside the weights of a model: configs, tokenizer, terms; no code."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".safetensors.index.json"):
                shutil.copyfile(file, scratch / file.name)


def _check_form(dense: bool, standalone: bool) -> None:
    if dense and standalone:
        raise ValueError("dense=True needs no code beside the weights: leave out standalone=True, or dense=True")


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


def write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write tensors as they come, a file of safetensors at a time, with an index if there are several."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}

    def write() -> None:
        file = folder / f"part-{len(shards)}.safetensors"
        try:
            save_file(held, str(file), {"format": "pt"})
        except Exception as error:  # safetensors has an exception of its own for a full disk
            raise OSError(f"{file}: cannot be written: {error}") from None
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > _SHARD:
            write()
        held[name] = tensor
    write()
    if len(shards) == 1:
        os.rename(folder / "part-0.safetensors", folder / "model.safetensors")
        return
    where, total = {}, 0
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        os.rename(folder / f"part-{i}.safetensors", folder / file)
        total += (folder / file).stat().st_size
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
