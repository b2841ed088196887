"""``eckart heal``: train a compressed model to predict what the original does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli import terminal, texts

__all__ = ["heal"]


def heal(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory of a model that eckart compressed")],
    original: Annotated[str, typer.Option(metavar="DIR", help="what it was compressed from")],
    text: Annotated[
        Path, typer.Option("--text", metavar="TEXT", help="file of text like what the model will read; plain or packed")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="directory to write the healed model to; may be MODEL")
    ],
    windows: Annotated[int, typer.Option(min=1, help="windows of the text to train on, a step each")] = 64,
    context: texts.Context = 1024,
    epochs: Annotated[int, typer.Option(min=1, help="how often they are read")] = 1,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Heal a compressed language model: train its factors until it predicts what the original does.

    The text gives contexts, not answers: the original does. A run that was stopped goes on where it was.
    """
    from eckart.nn import language
    from eckart.nn.heal import heal_model
    from eckart.nn.output import check_target

    check_target(output)
    started = time.perf_counter()
    tokens = language.tokens_of(language.load_tokenizer(model), language.read_text(text))
    cut = language.windows_of(tokens, context, windows)
    if len(cut) < windows:
        terminal.note(f"eckart: {text} has {len(cut)} windows of {context} tokens, not {windows}: using those")
    with terminal.stages_bar("healing") as show:
        result = heal_model(
            model,
            original,
            output,
            cut,
            epochs=epochs,
            lr=lr,
            progress=lambda done, total, loss: show(f"divergence {loss:.4g}, step", done, total),
        )
    result |= {"model": model, "output": str(output), "seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        terminal.print_json(result)
    else:
        terminal.print_facts("healed", result)
