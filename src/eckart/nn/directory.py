"""Compressing a model directory into another: decompose its blocks one by one, plan, write.

What was decomposed is kept in a folder until the model is written: a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.nn.blocks import LanguageBlocks
from eckart.nn.calibrate import Decomposition, Progress, decompose, forget
from eckart.nn.experts import UnstackedWeights, unstack
from eckart.nn.language import load_model
from eckart.nn.output import check_target
from eckart.nn.plan import RankPlan, check_keep, plan_ranks
from eckart.nn.vocabulary import check_ends, decompose_vocabulary
from eckart.nn.weigh import measured_weights
from eckart.nn.weights import Weights, compressed_by, read_config
from eckart.nn.written import check_form, write_compressed

__all__ = ["compress_model", "decompose_directory", "planned_bytes", "weights_of_layers", "work_beside"]


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
    check_form(dense, standalone, embeddings)
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
    saved -= _uncounted_order(chosen)
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
        network = load_model(model)
        unstack(network)
        weights = measured_weights(network, found, window, progress=progress)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(weights), "ascii")
        os.replace(part, file)
    return json.loads(file.read_bytes())


def planned_bytes(model: str | os.PathLike[str], found: Decomposition, plan: RankPlan) -> int:
    """Say how large the files of a model will be, compressed by a plan: to the length of their headers."""
    weights = UnstackedWeights(model, found.stacks)
    size = weights.bytes() + 4 * _uncounted_order(plan)
    for name, layer in plan.layers.items():
        if layer.rank is not None:
            matrix = _matrix_of(name)
            tied = found.groups[matrix].tied if matrix in found.groups else None
            weight = f"{matrix if tied is None or f'{matrix}.weight' in weights else tied}.weight"
            number = weights.bytes_of(weight) // math.prod(weights.shape(weight))
            order = layer.shape[0] if plan.pivoted else 0  # 4 bytes each
            size -= (layer.dense - layer.numbers + order) * number - 4 * order
    return size


def _matrix_of(layer: str) -> str:
    return layer.partition("[")[0]  # of which it is a group, or itself


def _uncounted_order(plan: RankPlan) -> int:
    """Count the order's numbers that no layer has: groups as they are, or of two factors, beside others of a rank."""
    cut = {_matrix_of(name) for name, layer in plan.layers.items() if layer.rank is not None}
    grouped = {name: layer for name, layer in plan.layers.items() if _matrix_of(name) in cut - {name}}
    return sum(layer.shape[0] for layer in grouped.values() if layer.rank is None or not plan.pivoted)
