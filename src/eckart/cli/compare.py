"""``eckart compare``: low rank beside sparsity and quantization, in equal bytes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from eckart.cli import terminal, texts

__all__ = ["compare"]


def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory of a Hugging Face language model")],
    text: Annotated[
        list[Path], typer.Argument(metavar="TEXT...", help="files of text to measure on, plain or .xz, .gz, .bz2")
    ],
    calibration: Annotated[Path, typer.Option(metavar="TEXT", help="file of text like what the model will read")],
    bits: Annotated[
        list[float] | None,
        typer.Option(metavar="BITS", help="budgets, bits a weight of the layers  [default: 12.8, 8.3, 5.3, 4.3]"),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="compare only layers of this name, * for anything")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="leave layers of this name alone")] = None,
    windows: Annotated[int, typer.Option(min=1, help="windows of the calibration text")] = 24,
    measured: Annotated[int, typer.Option(min=1, help="windows of each text to measure on")] = 8,
    context: texts.Context = 1024,
    gradients: Annotated[int, typer.Option(min=0, help="windows that also say what an error does")] = 8,
    group: Annotated[int, typer.Option(min=1, help="weights that share a scale and an offset")] = 128,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw perplexity by bits (.png, .svg, .pdf)")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep what calibration computes here, for the next time")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the labels that are drawn")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compare low rank, sparsity and quantization of a language model at equal bytes, on texts.

    Budgets are bits a weight of the layers in the model's blocks, everything counted; 16 is as they are. Nothing is
    written: the table says what each method costs in perplexity.
    """
    from eckart.nn import language
    from eckart.nn.compare import compare_model

    terminal.check_picture(plot)
    tokenizer = language.load_tokenizer(model)
    cut = language.windows_of(language.tokens_of(tokenizer, language.read_text(calibration)), context, windows)
    tests = {}
    for path in text:
        tokens = language.tokens_of(tokenizer, language.read_text(path))
        tests[path.name] = language.windows_of(tokens, context, measured).flatten()  # (refuses a text too short)

    def measure(network: Any) -> dict[str, float]:
        return {name: language.perplexity(network, tokens, context).perplexity for name, tokens in tests.items()}

    rows = []
    with TemporaryDirectory() as scratch, terminal.stages_bar("comparing") as progress:
        wanted: dict[str, Any] = {"patterns": tuple(layer or ("*",)), "skip": tuple(skip or ()), "seed": seed}
        budgets = bits or [12.8, 8.3, 5.3, 4.3]
        for row in compare_model(
            model,
            cut,
            budgets,
            measure,
            work or scratch,
            gradients=gradients,
            group=group,
            progress=progress,
            **wanted,
        ):
            rows.append(row)
            progress(f"{row['method']} {row['setting']} {next(iter(tests))} {row[next(iter(tests))]:.4g}", 1, 1)
    if plot is not None:
        from matplotlib.figure import Figure

        from eckart import plot as draw

        figure = Figure(figsize=(8, 5 * len(tests)), layout="constrained")
        for axes, name in zip(figure.subplots(len(tests), squeeze=False)[:, 0], tests, strict=True):
            draw.comparison(rows, name, axes)
        figure.savefig(plot, dpi=150)
    if as_json:
        terminal.print_json({"model": model, "context": context, "windows": measured, "rows": rows})
    else:
        columns = ["method", "setting", "bits", *tests]
        terminal.print_table(columns, [tuple(row[name] for name in columns) for row in rows])
