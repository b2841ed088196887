"""``eckart export``: a language model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli import terminal

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory of a Hugging Face language model")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="directory to write model.onnx and the tokenizer to")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Write a language model, compressed or not, as ONNX: token ids and their mask in, logits out.

    For whole sequences, without a cache of keys and values. Layers of low rank stay so. The result is run in
    onnxruntime and compared before it is kept.
    """
    from eckart.nn.export import export_model

    with terminal.stages_bar("exporting") as progress:
        result = export_model(model, output, progress=progress)
    result = {"model": model, "output": str(output)} | result
    if as_json:
        terminal.print_json(result)
    else:
        terminal.print_facts("exported", result)
