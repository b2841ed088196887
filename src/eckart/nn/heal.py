"""Healing: a compressed model learns the original's predictions again, from a text alone.

    min over the factors   mean over t of  KL( p(. | x_1 .. x_t) || q(. | x_1 .. x_t) )

with p the original's predictions and q the compressed model's. The text gives contexts, not answers: what the model
learns is to be the original again, not the text. Only layers of low rank are trained, their factors and biases.

Source: Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.nn.embedding import LowRankEmbedding, LowRankSoftmax
from eckart.nn.language import divergence, load_model
from eckart.nn.linear import LowRankConv2d, LowRankLinear
from eckart.nn.output import check_target
from eckart.nn.train import train
from eckart.nn.weights import Weights
from eckart.nn.written import write_trained

__all__ = ["factors_of", "heal_model"]


def factors_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """Give the parameters of a network's layers of low rank, by name."""
    found = dict[str, nn.Parameter]()
    for name, layer in network.named_modules():
        if isinstance(layer, LowRankLinear | LowRankConv2d):
            found |= {f"{name}.{part}": parameter for part, parameter in layer.named_parameters()}
        elif isinstance(layer, LowRankEmbedding | LowRankSoftmax):  # but their groups that are as they were
            cut = [i for i, (size, rank) in enumerate(zip(layer.sizes, layer.ranks, strict=True)) if rank < size]
            found |= {f"{name}.{side}.{i}": getattr(layer, side)[i] for i in cut for side in ("left", "right")}
    return {name: parameter for name, parameter in found.items() if parameter.numel()}


def heal_model(
    model: str | os.PathLike[str],
    original: str | os.PathLike[str],
    out: str | os.PathLike[str],
    windows: torch.Tensor,
    *,
    epochs: int = 1,
    lr: float = 1e-5,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a compressed language model to predict what the original does.

    Parameters
    ----------
    model, original : path
        Directories of the compressed model and of what it was compressed from.
    out : path
        Written whole or not at all; may be `model`. A run that was killed goes on from what is kept beside it.
    windows : (windows, context) int64
        Tokens; a step of training each.
    epochs : int
        How often all windows are read.
    lr : float
        Highest learning rate.
    progress : callable, optional
        Called with steps done, steps in all and the divergence.

    Returns
    -------
    dict
        The certificate of `model`, and what was done.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError, ValueError
        No such models, ones that do not fit each other, nothing to train, a target that is something else.
    """
    target = check_target(out)
    settings = {"windows": len(windows), "context": windows.shape[1], "epochs": epochs, "lr": lr}
    facts = {**settings, "tokens": hashlib.sha256(windows.numpy().tobytes()).hexdigest()}
    facts |= {"models": [Weights(folder).fingerprint() for folder in (model, original)]}
    student, teacher = load_model(model).requires_grad_(False), load_model(original).requires_grad_(False)
    if student.config.vocab_size != teacher.config.vocab_size:
        sizes = f"{student.config.vocab_size:,} and {teacher.config.vocab_size:,}"
        raise ValueError(f"{model} and {original} have vocabularies of {sizes} tokens: it comes from another model")
    parameters = factors_of(student)
    if not parameters:
        raise ValueError(f"{model} has no layer of low rank: give a model that eckart compressed, not --dense")
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    def parts_at(step: int) -> Iterator[torch.Tensor]:
        window = windows[step % len(windows)][None]
        with torch.no_grad():
            wanted = teacher(window, use_cache=False).logits
        yield divergence(student(window, use_cache=False).logits, wanted)

    work = target.with_name(f".{target.name}.eckart-heal")
    losses, _ = train(
        parameters,
        parts_at,
        epochs * len(windows),
        lr,
        checkpoint=work / "training.safetensors",
        run=json.dumps(facts, sort_keys=True),
        progress=progress,
    )
    certificate = json.loads((Path(model) / "eckart.json").read_bytes())
    certificate["healing"] = {**settings, "divergence": [losses[0], losses[-1]]}
    write_trained(model, out, parameters, certificate, _said(settings, losses))
    shutil.rmtree(work, ignore_errors=True)
    return certificate


def _said(settings: dict[str, Any], losses: list[float]) -> str:
    read = settings["windows"] * settings["context"] * settings["epochs"]
    return f"""
Healed: the factors were then trained on {read:,} tokens to predict what the original does. Its divergence on the first
window was {losses[0]:.3g} nats a token, on the last {losses[-1]:.3g}.
"""
