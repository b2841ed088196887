"""``eckart compress``: a language model in fewer numbers, with a certificate of what was lost."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import terminal, texts

if TYPE_CHECKING:
    from eckart.nn.calibrate import Decomposition

__all__ = ["compress"]

_KEEPS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # what a dry run asks for, beside --keep


def compress(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory of a Hugging Face language model")],
    calibration: Annotated[
        Path, typer.Option(metavar="TEXT", help="file of text like what the model will read; plain or .xz, .gz, .bz2")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="directory to write the compressed model to")
    ] = None,
    keep: Annotated[float, typer.Option(help="share of the numbers of the compressed layers that stays")] = 0.8,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ranks from a plan.json, edited or not, in place of --keep")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what each budget buys; what was computed is kept for the run")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="draw predicted loss by budget, layer and rank (.png, .svg, .pdf)"),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="compress only layers of this name, * for anything")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="leave layers of this name alone")] = None,
    windows: Annotated[int, typer.Option(min=1, help="windows of the text to calibrate with")] = 24,
    context: texts.Context = 1024,
    gradients: Annotated[
        int, typer.Option(min=0, help="windows that also say what an error does to the output; 0: sizes only")
    ] = 8,
    factors: Annotated[
        bool, typer.Option("--factors", help="store (m + n) k numbers a layer, not (m + n - k) k: plain products")
    ] = False,
    multiple: Annotated[int, typer.Option(min=1, help="ranks are multiples of this")] = 1,
    least: Annotated[int, typer.Option(min=0, help="no layer gets a lower rank")] = 1,
    weigh: Annotated[
        int, typer.Option(min=0, metavar="TOKENS", help="measure layer weights on so many tokens, a pass a layer")
    ] = 0,
    dense: Annotated[
        bool, typer.Option("--dense", help="multiply the factors out: original size, for programs without eckart")
    ] = False,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="put the code beside the weights: transformers needs no eckart then")
    ] = False,
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="the embedding and the softmax too, in groups of tokens; --keep is of all"),
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="keep decomposed layers here, for other budgets  [default: beside OUT]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the labels that are drawn")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compress the linear layers in the blocks of a language model, and say what is lost.

    Layers are cut where it costs the model's predictions least, as measured on the calibration text. A run that was
    stopped goes on where it was. transformers loads the result after "import eckart".
    """
    if output is None and not dry_run:
        raise typer.BadParameter("Missing option '--output' / '-o': where to write, unless this is a --dry-run")
    if dense and standalone:
        raise typer.BadParameter("--dense needs no code beside the weights: leave out --standalone, or --dense")
    terminal.check_picture(plot)
    from eckart.nn import directory, language
    from eckart.nn.output import check_target

    if output is not None:
        check_target(output)
    started = time.perf_counter()
    tokens = language.tokens_of(language.load_tokenizer(model), language.read_text(calibration))
    cut = language.windows_of(tokens, context, windows)
    if len(cut) < windows:
        terminal.note(f"eckart: {calibration} has {len(cut)} windows of {context} tokens, not {windows}: using those")
    wanted: dict[str, Any] = {
        "patterns": tuple(layer or ("*",)),
        "skip": tuple(skip or ()),
        "gradients": gradients,
        "embeddings": embeddings,
        "seed": seed,
    }
    with TemporaryDirectory() as scratch:
        if work is None and output is None:
            work = Path(scratch)
        with terminal.stages_bar("compressing") as progress:
            if dry_run:
                beside = directory.work_beside(output) if work is None and output is not None else work
                assert beside is not None
                found = directory.decompose_directory(model, cut, beside, progress=progress, **wanted)
                form: dict[str, Any] = {"pivoted": not factors, "multiple": multiple, "least": least}
                if weigh:
                    form["weights"] = directory.weights_of_layers(model, found, cut[0, :weigh], progress)
                _show_budgets(model, found, keep, form, plot, as_json)
                if work is None:
                    terminal.note(f"eckart: the same command without --dry-run goes on from {beside}")
                return
            assert output is not None
            more = {"plan": plan, "work": work, "dense": dense, "standalone": standalone, "weigh": weigh}
            more |= {"pivoted": not factors, "multiple": multiple, "least": least}
            result = directory.compress_model(model, output, cut, keep, progress=progress, **wanted, **more)
    result |= {"model": model, "output": str(output), "seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        terminal.print_json(result)
    else:
        terminal.print_facts("compressed", result)


def _show_budgets(
    model: str, found: Decomposition, keep: float, form: dict[str, Any], plot: Path | None, as_json: bool
) -> None:
    from eckart.nn.directory import planned_bytes
    from eckart.nn.plan import plan_ranks

    plan = plan_ranks(found.layers, keep, **form)
    budgets = []
    for budget in sorted({*_KEEPS, keep}, reverse=True):
        with suppress(ValueError):  # it cannot be met
            bought = plan_ranks(found.layers, budget, **form)
            whole = sum(x.rank is None for x in bought.layers.values())
            row = {"keep": round(bought.keep, 4), "loss": bought.loss, "as they are": whole}
            budgets.append({**row, "MB": round(planned_bytes(model, found, bought) / 1e6, 1)})
    if plot is not None:
        from matplotlib.figure import Figure

        from eckart import plot as draw

        figure = Figure(figsize=(8, 12), layout="constrained")
        upper, middle, lower = figure.subplots(3)
        draw.budgets(budgets, upper)
        draw.layer_losses({name: x.loss for name, x in plan.layers.items()}, middle)
        middle.set_ylabel(f"predicted rise of the loss at keep {plan.keep:.3g}")
        draw.spectra({name: x.losses for name, x in found.layers.items()}, lower)
        figure.savefig(plot, dpi=150)
    if as_json:
        terminal.print_json({"budgets": budgets, "plan": plan.to_dict()})
        return
    columns = list(budgets[0])
    terminal.print_table(columns, [tuple(row[name] for name in columns) for row in budgets])
    print()
    rows = [
        (name, x.shape[0], x.shape[1], "as it is" if x.rank is None else str(x.rank), x.numbers / x.dense, x.loss)
        for name, x in plan.layers.items()
    ]
    terminal.print_table(["layer", "rows", "columns", "rank", "kept", "loss"], rows)
