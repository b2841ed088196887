"""Fine-tuning a language model in memory: the same loop for its updates of low rank and for all of its weights.

    loss of a step = sum of -log p(token | what stands before it in its example)  /  tokens
                     over the tokens of the step's windows that count

Windows are read a few at a time, and gradients add up; of several processes each reads every so-manieth few. Logits
are made only before tokens that count: where prompts are long and answers short, the softmax, the largest layer of a
small model, costs nearly nothing.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eckart.nn.adapters.examples import UNCOUNTED, Example, Packed, pack
from eckart.nn.train import Trained, add_up, process_of, train

__all__ = ["answers", "check_windows", "choice_accuracy", "counted_losses", "finetune", "mean_loss", "steps_of"]


def counted_losses(network: Any, windows: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the tokens that count.

    Parameters
    ----------
    network : Module
        A causal language model of transformers; windows are sent to where it is.
    windows : Packed

    Returns
    -------
    Tensor of shape (n,)
        -log p of each such token, in nats.
    Tensor of shape (n,)
        The example that it is of.
    """
    device = network.device
    counts = windows.labels != UNCOUNTED
    stop = int(counts.any(0).nonzero()[-1]) + 1 if counts.any() else 1  # what follows changes nothing before it
    places = counts[:, 1:stop].any(0).nonzero()[:, 0]  # where some window has a token to predict
    given = {"input_ids": windows.tokens[:, :stop].to(device), "position_ids": windows.positions[:, :stop].to(device)}
    some = "logits_to_keep" in inspect.signature(network.forward).parameters
    more = {"logits_to_keep": places.to(device)} if some else {}
    logits = network(**given, use_cache=False, **more).logits
    logits = logits if some else logits[:, places.to(device)]
    wanted = windows.labels[:, places + 1]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten().to(device), ignore_index=UNCOUNTED, reduction="none"
    )
    which = (wanted.flatten() != UNCOUNTED).nonzero()[:, 0]
    whose = windows.examples[:, places + 1].flatten()[which]
    return (losses if len(which) == len(losses) else losses[which.to(device)]), whose


@torch.no_grad()
def mean_loss(
    network: Any, windows: Packed, at_once: int = 1, progress: Callable[[int, int], None] | None = None
) -> float:
    """Mean loss of a counted token, in nats; several processes share the work.

    Parameters
    ----------
    network : Module
    windows : Packed
    at_once : int
        Windows read at a time.
    progress : callable, optional
        Called with windows done and in all.
    """
    first, world = process_of()
    training = network.training
    network.eval()
    total = torch.zeros(2, device=network.device)
    for start in range(first * at_once, len(windows.tokens), world * at_once):
        losses, _ = counted_losses(network, windows.rows(slice(start, start + at_once)))
        total += torch.stack([losses.sum(), torch.tensor(float(len(losses)), device=total.device)])
        if progress:
            progress(min(start + at_once, len(windows.tokens)), len(windows.tokens))
    network.train(training)
    add_up([total])
    return float(total[0] / total[1].clamp_min(1))


def answers(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Give the distinct answers of examples, or none where one is no prompt and an answer after it.

    Examples
    --------
    >>> answers([Example([5, 1], [False, True]), Example([6, 2], [False, True]), Example([7, 1], [False, True])])
    [(1,), (2,)]
    >>> answers([Example([5, 1], [False, True]), Example([6, 2], [True, True])])
    []
    """
    starts = [x.counted.index(True) if True in x.counted else 0 for x in examples]
    if not all(start and all(x.counted[start:]) for x, start in zip(examples, starts, strict=True)):
        return []
    return sorted({tuple(x.tokens[start:]) for x, start in zip(examples, starts, strict=True)})


@torch.no_grad()
def choice_accuracy(
    network: Any,
    examples: Sequence[Example],
    context: int,
    choices: Sequence[tuple[int, ...]],
    together: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Share of examples whose answer is more probable than every other one that there is.

    Parameters
    ----------
    network : Module
    examples : sequence of Example
        Each one a prompt, then an answer, which counts.
    context : int
        Tokens a window.
    choices : sequence of tuple of int
        The answers: see `answers`.
    together : bool
        Whether a window takes several examples.
    progress : callable, optional
        Called with windows done and in all.

    Raises
    ------
    ValueError
        An example that does not fit its window, or whose answer is none of the choices.
    """
    tried, right = [], []
    for example in examples:
        asked = example.tokens[: example.counted.index(True)]
        right.append(list(choices).index(tuple(example.tokens[len(asked) :])))
        tried += [Example([*asked, *x], [False] * len(asked) + [True] * len(x)) for x in choices]
    windows, left_out = pack(tried, context, together=together)
    if left_out:
        raise ValueError(f"{left_out:,} examples are longer than {context} tokens: give a larger context")
    network.eval()
    scores = torch.zeros(len(tried))
    for i in range(len(windows.tokens)):
        losses, whose = counted_losses(network, windows.rows(slice(i, i + 1)))
        scores.index_add_(0, whose, -losses.cpu())
        if progress:
            progress(i + 1, len(windows.tokens))
    best = scores.view(len(examples), len(choices)).argmax(1)
    return float((best == torch.tensor(right)).double().mean())


@torch.no_grad()
def check_windows(network: Any, context: int, together: bool = True) -> None:
    """Refuse windows that a model cannot read as they are meant: tried with two examples, not believed.

    Parameters
    ----------
    network : Module
        A causal language model of transformers.
    context : int
        Tokens a window.
    together : bool
        Whether a window takes several examples.

    Raises
    ------
    ValueError
        Windows longer than the model's context, or an example is not to the model what it is alone when another stands
        before it.
    """
    longest = getattr(network.config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise ValueError(f"context is {context}, and the model reads at most {longest} tokens")
    if not together:
        return
    network.eval()
    ids, place = (torch.arange(3, 11) % network.config.vocab_size)[None].to(network.device), torch.arange(4)[None]
    place = place.to(network.device)
    alone = network(input_ids=ids[:, 4:], position_ids=place, use_cache=False).logits
    packed = network(input_ids=ids, position_ids=place.repeat(1, 2), use_cache=False).logits[:, 4:]
    if bool((alone - packed).abs().max() > 1e-3 * alone.abs().max()):
        kind = network.config.model_type
        raise ValueError(f"examples in one window would see each other in a model of the kind {kind}: one a window")


def steps_of(windows: int, batch: int, epochs: int) -> int:
    """Count the steps that read so many windows so often.

    Raises
    ------
    ValueError
        Either is below 1.

    Examples
    --------
    >>> steps_of(10, batch=4, epochs=2)
    6
    """
    if min(batch, epochs) < 1:
        raise ValueError(f"batch is {batch} and epochs {epochs}, expected at least 1")
    return math.ceil(windows / batch) * epochs


def finetune(
    network: Any,
    parameters: Mapping[str, nn.Parameter],
    windows: Packed,
    lr: float,
    *,
    held: Packed | None = None,
    epochs: int = 1,
    batch: int = 8,
    at_once: int = 1,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    validate_every: int = 0,
    patience: int = 0,
    bfloat16: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    run: str = "",
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train parameters of a language model on examples, in place.

    Parameters
    ----------
    network : Module
        A causal language model of transformers.
    parameters : mapping of str to Parameter
        What is trained; see `eckart.nn.adapters.lora.lora_parameters`.
    windows, held : Packed
        Examples to learn from, and to validate on.
    lr : float
        Highest learning rate.
    epochs : int
        How often all windows are read, each time in another order.
    batch : int
        Windows a step.
    at_once : int
        Windows of them that are read at a time: more take more memory. But for the model's own dropout the step is the
        same.
    warmup, weight_decay, validate_every, patience, checkpoint, run, progress
        See `eckart.nn.train.train`.
    bfloat16 : bool
        Whether products are rounded to 16 bits (autocast); what is trained stays as it is.
    seed : int
        Of the order, and of the model's own dropout.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        See `eckart.nn.train.train`; an argument out of range.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}, expected at least 1")
    steps = steps_of(len(windows.tokens), batch, epochs)
    device, (first, world) = network.device, process_of()
    a_pass = math.ceil(len(windows.tokens) / batch)
    rounded: dict[str, Any] = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": bfloat16}

    def parts_at(step: int) -> Iterator[torch.Tensor]:
        epoch, place = divmod(step, a_pass)
        order = torch.randperm(
            len(windows.tokens), generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        )
        read = windows.rows(order[place * batch : (place + 1) * batch])
        counted = max(1, int((read.labels != UNCOUNTED).sum()))
        network.train()
        for start in range(first * at_once, len(read.tokens), world * at_once):
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.autocast(**rounded):
                torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + start) % 2**63)
                losses, _ = counted_losses(network, read.rows(slice(start, start + at_once)))
            yield losses.sum() / counted

    def validate() -> float:
        assert held is not None
        with torch.autocast(**rounded):
            return mean_loss(network, held, at_once)

    try:
        return train(
            parameters,
            parts_at,
            steps,
            lr,
            warmup=warmup,
            weight_decay=weight_decay,
            validate=None if held is None else validate,
            validate_every=validate_every,
            patience=patience,
            checkpoint=checkpoint,
            run=run,
            progress=progress,
        )
    finally:
        network.eval()
