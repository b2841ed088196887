"""A language model's directory fine-tuned on examples: an adapter out of it, or the whole model again.

LoRA's learning rate is ten times that of all weights by default; it depends on neither rank nor method else.

Source: Schulman et al. 2025, "LoRA without regret", for the rates and for adapting every linear layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import eckart
from eckart.core.processes import process_group
from eckart.nn.adapters.adapter import adapter_of
from eckart.nn.adapters.examples import Example, Packed, pack
from eckart.nn.adapters.files import save_adapter
from eckart.nn.adapters.finetune import check_windows, counted_losses, finetune, steps_of
from eckart.nn.adapters.init import Init, data_aware, gauss_b, gradient_aligned, pissa, zero_b
from eckart.nn.adapters.learned import learned
from eckart.nn.adapters.lora import adaptable_layers, add_lora, lora_parameters
from eckart.nn.adapters.ranks import gradients_of, moments_of, ranks_within
from eckart.nn.calibrate import Progress
from eckart.nn.language import check_device, load_model, quiet
from eckart.nn.output import check_target, copy_rest, replaced_whole
from eckart.nn.train import Trained
from eckart.nn.weights import Weights

__all__ = ["FULL_RATE", "INITS", "LORA_RATE", "adapt", "train_model"]

FULL_RATE, LORA_RATE = 2e-5, 2e-4
INITS: dict[str, Init] = {
    "zero-b": zero_b,
    "gauss-b": gauss_b,
    "pissa": pissa,
    "data-aware": data_aware,
    "gradient-aligned": gradient_aligned,
}


def train_model(
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    examples: Sequence[Example],
    held: Sequence[Example] = (),
    *,
    tests: Sequence[Example] = (),
    known: torch.Tensor | None = None,
    full: bool = False,
    rank: int = 16,
    alpha: float = 32.0,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    ranks: Mapping[str, int] | None = None,
    budget: int | None = None,
    rslora: bool = False,
    dora: bool = False,
    init: str = "zero-b",
    lr: float | None = None,
    epochs: int = 1,
    batch: int = 8,
    at_once: int = 1,
    context: int = 1024,
    together: bool = True,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    validate_every: int | None = None,
    patience: int = 0,
    checkpointing: bool = False,
    device: str = "cpu",
    bfloat16: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train an adapter for a model directory, or the whole model.

    Under torchrun the processes share the work of every step. A run that was killed goes on from what is kept beside
    `out`, to the same numbers.

    Parameters
    ----------
    base : path
        Directory of a causal language model of transformers.
    out : path
        Directory of the adapter, or of the model; written whole or not at all.
    examples, held : sequence of Example
        To learn from, and to validate on: what is kept is what was best on these. None: what is there at the end.
    tests : sequence of Example
        To measure on, before and after.
    known : Tensor of shape (windows, context), optional
        Tokens of a text, to measure what is forgotten: see `eckart.nn.adapters.learned`.
    full : bool
        Train all weights; what is said of updates then says nothing.
    rank, alpha, patterns, skip, ranks, rslora, dora
        Of the updates: see `eckart.nn.adapters.lora.add_lora`.
    budget : int, optional
        Trained numbers, in place of ranks: see `eckart.nn.adapters.ranks`.
    init : str
        Where updates start, one of `INITS`.
    lr : float, optional
        Highest learning rate; LORA_RATE or FULL_RATE by default.
    epochs, batch, at_once, warmup, weight_decay, patience
        See `eckart.nn.adapters.finetune.finetune`.
    context : int
        Tokens a window. Longer examples are left out, and counted.
    together : bool
        Whether a window takes several examples.
    validate_every : int, optional
        Steps; a tenth of all by default.
    checkpointing : bool
        Compute blocks twice, and keep less.
    device : str
        "cpu", "cuda", ...
    bfloat16 : bool, optional
        Whether products are rounded to 16 bits, and a frozen base kept in them; by default on devices that have them.
    seed : int
        Of the order, random factors and dropout.
    progress : callable, optional
        Called with a stage, steps or windows done, and in all.

    Returns
    -------
    dict
        Settings, losses and what was measured, also kept as eckart.json; and ``peak_bytes``, of this process.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError, ValueError
        No such model, nothing that fits, a loss that is not finite, an argument out of range.
    """
    target = check_target(out)
    if init not in INITS:
        raise ValueError(f"init is {init!r}, expected one of {', '.join(INITS)}")
    check_device(device)
    cuda = device.startswith("cuda")
    with process_group(device) as group:
        place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and group.world > 1 else device
        bfloat16 = cuda and torch.cuda.is_bf16_supported() if bfloat16 is None else bfloat16

        def told(stage: str, done: int, total: int) -> None:
            if progress and group.rank == 0:
                progress(stage, done, total)

        network = load_model(base)
        check_windows(network, context, together)
        windows, left_out = pack(examples, context, together=together)
        judged = pack(held, context, together=together)[0] if held else None
        for packed in (windows, *(() if judged is None else (judged,))):
            if not bool((packed.labels >= 0).any()):
                raise ValueError(
                    "no token of the examples counts: there is nothing to learn, or nothing to validate on"
                )
        network.to(place)
        before = learned(network, tests, known, context, together, told)
        rate = (FULL_RATE if full else LORA_RATE) if lr is None else lr
        settings: dict[str, Any] = {"full": True} if full else {"rank": rank, "alpha": alpha, "init": init}
        if not full:
            settings |= {"rslora": rslora, "dora": dora, **({} if budget is None else {"budget": budget})}
        settings |= {"lr": rate, "epochs": epochs, "batch": batch, "context": context, "together": together}
        settings |= {"seed": seed, "warmup": warmup, "weight_decay": weight_decay, "patience": patience}
        settings |= {"bfloat16": bfloat16}
        if full:
            parameters = dict(network.requires_grad_(True).named_parameters())
        else:
            parameters = adapt(
                network,
                windows.rows(slice(max(8, batch))),
                patterns=patterns,
                skip=skip,
                rank=rank,
                alpha=alpha,
                ranks=ranks,
                budget=budget,
                rslora=rslora,
                dora=dora,
                init=init,
                seed=seed,
            )
            if bfloat16:
                for name, parameter in network.named_parameters():
                    parameter.data = parameter.data if name in parameters else parameter.data.bfloat16()
        if checkpointing:
            # (the name since transformers 5, which warns of the older one)
            new = getattr(network, "activation_checkpointing_enable", None)
            (new or network.gradient_checkpointing_enable)({"use_reentrant": False})
        steps = steps_of(len(windows.tokens), batch, epochs)
        apart = max(1, steps // 10) if validate_every is None else validate_every
        work = target.with_name(f".{target.name}.eckart-lora")
        history = finetune(
            network,
            parameters,
            windows,
            rate,
            held=judged,
            epochs=epochs,
            batch=batch,
            at_once=at_once,
            warmup=warmup,
            weight_decay=weight_decay,
            validate_every=apart,
            patience=patience,
            bfloat16=bfloat16,
            seed=seed,
            checkpoint=work / "training.safetensors",
            run=_identity(base, settings, parameters, windows, judged, apart),
            progress=lambda done, total, loss: told(f"loss {loss:.4g}, step", done, total),
        )
        trained = sum(x.numel() for x in parameters.values())
        made = _said(base, settings, history, windows, left_out, trained)
        if before:
            made |= {"before": before, "after": learned(network, tests, known, context, together, told)}
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if group.rank == 0:
            if full:
                _save_model(network, base, out, made)
            else:
                save_adapter(adapter_of(network, str(base), "CAUSAL_LM"), out, made)
            shutil.rmtree(work, ignore_errors=True)
    return {**made, "peak_bytes": peak}


def adapt(
    network: Any,
    sample: Packed,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    rank: int = 16,
    alpha: float = 32.0,
    ranks: Mapping[str, int] | None = None,
    budget: int | None = None,
    rslora: bool = False,
    dora: bool = False,
    init: str = "zero-b",
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Give a language model updates to train, in place, with what a sample of examples says of where and how.

    Parameters
    ----------
    network : Module
    sample : Packed
        Read only if a budget or `init` asks for it.
    patterns, skip, rank, alpha, ranks, budget, rslora, dora, init, seed
        See `train_model`.

    Returns
    -------
    dict of str to Parameter
        What is trained, by name.
    """
    layers = adaptable_layers(network, patterns, skip)
    network.eval()
    each = range(len(sample.tokens))
    counted = max(1, int((sample.labels >= 0).sum()))
    gradients = None
    if budget is not None or init == "gradient-aligned":
        network.requires_grad_(False)
        losses = (counted_losses(network, sample.rows(slice(i, i + 1)))[0] for i in each)
        gradients = gradients_of(layers, (x.sum() / counted for x in losses))
    if budget is not None and gradients is not None:
        if ranks:
            raise ValueError("ranks follow from the budget: give one of the two")
        ranks = {name: k for name, k in ranks_within(gradients, budget, dora).items() if k}
        layers = {name: layers[name] for name in ranks}
        patterns, skip = tuple(ranks), ()
    known = None
    if init == "gradient-aligned" and gradients is not None:
        known = {name: gradients[name] for name in layers}
    elif init == "data-aware":
        known = moments_of(layers, lambda: [counted_losses(network, sample.rows(slice(i, i + 1))) for i in each])
    form: dict[str, Any] = {"ranks": ranks, "rslora": rslora, "dora": dora}
    add_lora(network, rank, alpha, patterns, skip, **form, init=INITS[init], known=known, seed=seed)
    return lora_parameters(network)


def _identity(
    base: str | os.PathLike[str],
    settings: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    windows: Packed,
    held: Packed | None,
    apart: int,
) -> str:
    """What makes a run this one: a checkpoint of another is not gone on with."""
    read = hashlib.sha256()
    for packed in (windows, *(() if held is None else (held,))):
        for tensor in packed:
            read.update(tensor.numpy().tobytes())
    shapes = {name: list(x.shape) for name, x in parameters.items()}
    facts = {**settings, "base": Weights(base).fingerprint(), "data": read.hexdigest(), "every": apart}
    return json.dumps(facts | {"shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()}, sort_keys=True)


def _said(
    base: str | os.PathLike[str],
    settings: Mapping[str, Any],
    history: Trained,
    windows: Packed,
    left_out: int,
    trained: int,
) -> dict[str, Any]:
    return {
        "base": Path(base).resolve().name,
        **settings,
        "windows": len(windows.tokens),
        "left_out": left_out,
        "counted_tokens": int((windows.labels >= 0).sum()),
        "trained_numbers": trained,
        "steps": len(history.losses),
        "best_step": history.best,
        "validated": [[step, round(loss, 6)] for step, loss in history.validated],
        "losses": [round(x, 6) for x in history.losses],
    }


def _save_model(network: Any, base: str | os.PathLike[str], out: str | os.PathLike[str], made: dict[str, Any]) -> None:
    """Write a tuned model in float32, as it was measured, and what stood beside the weights of its base."""
    size = sum(x.nbytes for x in network.parameters())
    with replaced_whole(out, size) as scratch:
        copy_rest(Path(base), scratch)
        try:
            with quiet():
                network.to("cpu").save_pretrained(scratch)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{out}: cannot be written: {error}") from None
        facts = {"eckart": eckart.__version__, "tuned": True, **made}
        (scratch / "eckart.json").write_text(json.dumps(facts, indent=1) + "\n", "ascii")
