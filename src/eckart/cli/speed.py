"""``eckart speed``: tokens a second and memory of language models, in turns."""

from __future__ import annotations

from typing import Annotated

import typer

from eckart.cli import terminal

__all__ = ["speed"]


def speed(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="directories of Hugging Face models, compressed or not")
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="texts at once  [default: 1, 8]")] = None,
    context: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="tokens that are read")] = 128,
    new: Annotated[int, typer.Option(min=2, metavar="TOKENS", help="tokens that are written after them")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="turns a model has; medians are printed")] = 5,
    device: Annotated[str, typer.Option(help="where: cpu, cuda")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure how fast language models read and write, and what memory they take.

    Models take turns, each in a process of its own, in float32. The last column is the rate of writing by that of the
    first model.
    """
    from eckart.nn.speed import measure_speed

    with terminal.stages_bar("measuring") as progress:
        found = measure_speed(
            models, batch or (1, 8), context=context, new=new, rounds=rounds, device=device, progress=progress
        )
    if as_json:
        settings = {"context": context, "new": new, "rounds": rounds, "device": device}
        terminal.print_json({**settings, "models": [row._asdict() for row in found]})
        return
    first = {row.batch: row.written for row in reversed(found)}
    columns = ["model", "batch", "read/s", "written/s", "weights MB", "peak MB", "ratio"]
    rows = [
        (x.model, x.batch, x.read, x.written, x.weight_bytes / 1e6, x.peak_bytes / 1e6, x.written / first[x.batch])
        for x in found
    ]
    terminal.print_table(columns, rows)
