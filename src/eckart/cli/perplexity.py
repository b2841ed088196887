"""``eckart perplexity``: how well a language model predicts texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli import terminal, texts

__all__ = ["perplexity"]


def perplexity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory of a Hugging Face model")],
    text: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="files of text, plain or .xz, .gz, .bz2")],
    context: texts.Context = 1024,
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="from one window to the next  [default: they do not overlap]"),
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="only so many, from the beginning")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="put the BOS token before every window")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure the perplexity of a causal language model on texts.

    Figures compare at equal context, stride and BOS only. One text flatters a model that was tuned or calibrated on
    its like: give two.
    """
    from eckart.nn import language

    tokenizer = language.load_tokenizer(model)
    start = tokenizer.bos_token_id if bos else None
    if bos and start is None:
        raise typer.BadParameter(f"--bos: the tokenizer of {model} has no BOS token")
    tokens = {str(path): language.tokens_of(tokenizer, language.read_text(path)) for path in text}
    with terminal.waiting(f"loading {model}"):
        loaded = language.load_model(model)
    results = []
    for path, every in tokens.items():
        used = every
        if windows is not None:
            used = every[: language.needed_tokens(windows, context, stride, bos)]
        with terminal.stages_bar(f"reading {path}") as progress:
            found = language.perplexity(
                loaded, used, context, stride, start, lambda done, total: progress("windows", done, total)
            )
        results.append({"text": path, **found._asdict()})
    if as_json:
        terminal.print_json({"model": model, "texts": results})
    else:
        columns = ["text", "perplexity", "loss", "tokens", "context", "stride", "bos"]
        terminal.print_table(columns, [tuple(row[name] for name in columns) for row in results])
