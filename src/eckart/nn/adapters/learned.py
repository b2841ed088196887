"""What a tuned language model has learned, and what it has forgotten.

learned     the loss on examples of the task, and how many of their answers are right where there are few to choose from
forgotten   the rise of the loss on a text that the base knew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from eckart.nn.adapters.examples import Example, pack
from eckart.nn.adapters.finetune import answers, choice_accuracy, mean_loss
from eckart.nn.calibrate import Progress
from eckart.nn.language import perplexity

__all__ = ["MOST_CHOICES", "learned"]

MOST_CHOICES = 10  # more answers than these are no choice among a few: only the loss is measured


def learned(
    network: Any,
    tests: Sequence[Example],
    known: torch.Tensor | None,
    context: int,
    together: bool = True,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measure a language model on a task, and on a text.

    Parameters
    ----------
    network : Module
    tests : sequence of Example
        Of the task; none: nothing is said of it.
    known : Tensor of shape (windows, context), optional
        Tokens of a text.
    context : int
        Tokens a window of the examples.
    together : bool
        Whether a window takes several examples.
    progress : callable, optional
        Called with what is measured, windows done and in all.

    Returns
    -------
    dict
        ``loss``, nats a counted token; ``accuracy``, where examples have prompts and at most MOST_CHOICES answers;
        ``known_loss``, nats a token.
    """
    said: dict[str, float] = {}
    network.eval()

    def told(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    if tests:
        choices = answers(tests)
        said["loss"] = mean_loss(network, pack(tests, context, together=together)[0], progress=told("answering"))
        if 1 < len(choices) <= MOST_CHOICES:
            said["accuracy"] = choice_accuracy(network, tests, context, choices, together, told("choosing answers"))
    if known is not None:
        said["known_loss"] = perplexity(network, known.flatten(), known.shape[1], progress=told("reading")).loss
    return said
