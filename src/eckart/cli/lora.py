"""``eckart lora``: adapters trained, compared with full tuning, merged, extracted, resized and added."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.cli import lora_frontier, lora_train, terminal, texts

__all__ = ["app"]

app = typer.Typer(
    rich_markup_mode=None, help="Adapters of low rank (LoRA): train, merge, extract, resize, add; in peft's files."
)

app.command("train")(lora_train.train)
app.command("frontier")(lora_frontier.frontier)

Out = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="directory to write to")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command("merge")
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="directory of a Hugging Face model")],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="directory of an adapter, by eckart or peft")],
    output: Out,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its model: the result is a plain model of the same size.

    The model passes through one file at a time. For weights of 16 bits it says how much of the update rounding took.
    Where embedding and softmax are one tensor and one of them is adapted, both are written.
    """
    from eckart.nn.adapters.merge import merge_directory

    started = time.perf_counter()
    with terminal.stages_bar("lora") as progress:
        result = merge_directory(base, adapter, output, progress=progress)
    _show("merged", result, output, started, as_json)


@app.command("extract")
def extract(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="directory of a tuned model")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="directory of the model it was tuned from")],
    output: Out,
    rank: Annotated[int, typer.Option(min=1, help="largest rank of a layer")] = 16,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="TEXT", help="file of text: keep what changes the layers' outputs most on it"),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="windows of the text to calibrate with")] = 24,
    context: texts.Context = 1024,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="only layers of this name, * for anything")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="leave layers of this name out")] = None,
    as_json: Json = False,
) -> None:
    """Extract an adapter from a tuned model: the best approximation of what tuning changed, in every layer.

    With --calibration, layers in the model's blocks are cut in the metric of their inputs.
    """
    from tempfile import TemporaryDirectory

    from eckart.nn import directory, language
    from eckart.nn.adapters.extract import check_alike, extract_adapter
    from eckart.nn.adapters.files import save_adapter
    from eckart.nn.output import check_target
    from eckart.nn.skeleton import Skeleton

    check_target(output)
    started = time.perf_counter()
    check_alike(Skeleton(base), Skeleton(tuned))
    asked = {"patterns": tuple(layer or ("*",)), "skip": tuple(skip or ())}
    with terminal.stages_bar("lora") as progress, TemporaryDirectory() as work:
        moments = None
        if calibration is not None:
            tokens = language.tokens_of(language.load_tokenizer(base), language.read_text(calibration))
            cut = language.windows_of(tokens, context, windows)
            found = directory.decompose_directory(base, cut, work, gradients=0, keep_moments=True, progress=progress)
            moments = lambda name: found.moments(name) if name in found.layers else None  # noqa: E731
        adapter, report = extract_adapter(tuned, base, rank, moments=moments, progress=progress, **asked)
        made = {"extracted": Path(tuned).resolve().name, "base": Path(base).resolve().name, "rank": rank}
        save_adapter(adapter, output, {**made, "calibrated": calibration is not None, **report})
    for name, change in list(report["left_out"].items())[:3]:
        terminal.note(f"eckart: {name} was tuned too (by {100 * change:.2g} %), and is not in the adapter")
    if len(report["left_out"]) > 3:
        terminal.note(f"eckart: and {len(report['left_out']) - 3} more tensors")
    _show(
        "extracted",
        made | _summary({n: x["kept"] for n, x in report["layers"].items()}) | {"left_out": len(report["left_out"])},
        output,
        started,
        as_json,
    )


@app.command("resize")
def resize(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="directory of an adapter, by eckart or peft")],
    output: Out,
    rank: Annotated[int | None, typer.Option(min=1, help="largest rank of a layer")] = None,
    energy: Annotated[
        float | None, typer.Option(help="in place of --rank: share of each update's sum of squares to keep")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give every update of an adapter its best approximation of a smaller rank, from the factors alone."""
    from eckart.nn.adapters.adapter import resize_adapter
    from eckart.nn.adapters.files import load_adapter, save_adapter
    from eckart.nn.output import check_target

    if (rank is None) == (energy is None):
        raise typer.BadParameter("give one of --rank and --energy")
    check_target(output)
    started = time.perf_counter()
    with terminal.waiting("resizing"):
        resized, kept = resize_adapter(load_adapter(adapter), rank, energy)
        made = {"resized": Path(adapter).resolve().name, "rank": rank, "energy": energy}
        save_adapter(resized, output, {**made, "kept": kept})
    ranks = [update.factors.rank for update in resized.layers.values()]
    _show("resized", made | _summary(kept) | {"ranks": [min(ranks), max(ranks)]}, output, started, as_json)


@app.command("add")
def add(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="directories of adapters of one model")],
    output: Out,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="what each is multiplied by  [default: 1]")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="largest rank of a layer  [default: the sum of theirs]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add adapters: exactly, or cut to a rank. Weights of 1/n give the average."""
    from eckart.nn.adapters.adapter import add_adapters
    from eckart.nn.adapters.files import load_adapter, save_adapter
    from eckart.nn.output import check_target

    try:
        numbers = None if weights is None else [float(x) for x in weights.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--weights is {weights!r}, expected numbers like 0.5,0.5") from None
    check_target(output)
    started = time.perf_counter()
    with terminal.waiting("adding"):
        total, kept = add_adapters([load_adapter(x) for x in adapters], numbers, rank)
        made = {"added": [Path(x).resolve().name for x in adapters], "weights": numbers, "rank": rank}
        save_adapter(total, output, {**made, "kept": kept})
    ranks = [update.factors.rank for update in total.layers.values()]
    _show("added", made | _summary(kept) | {"ranks": [min(ranks), max(ranks)]}, output, started, as_json)


def _summary(kept: dict[str, float]) -> dict[str, Any]:
    least = min(kept, key=lambda name: kept[name])
    return {"layers": len(kept), "kept_least": kept[least], "kept_least_layer": least}


def _show(title: str, result: dict[str, Any], output: Path, started: float, as_json: bool) -> None:
    result = {**result, "output": str(output), "seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        terminal.print_json(result)
    else:
        terminal.print_facts(title, result)
