"""``eckart lora frontier``: what is learned against what is forgotten, by method and learning rate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.cli import terminal, texts
from eckart.cli.lora_train import Completion, Held, HeldFile, HeldSplit, Limit, Prompt, Split, divided

__all__ = ["frontier"]


def frontier(
    base: Annotated[str, typer.Argument(metavar="BASE", help="directory of a Hugging Face language model")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="examples: .jsonl, .parquet or .csv")],
    knew: Annotated[Path, typer.Option(metavar="TEXT", help="file of text that the base knew")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="directory for table and picture")],
    prompt: Prompt = None,
    completion: Completion = None,
    split: Split = None,
    validation: HeldFile = None,
    validation_split: HeldSplit = None,
    held: Held = 200,
    limit: Limit = None,
    knew_windows: Annotated[int, typer.Option(min=1, metavar="WINDOWS", help="of the text, from its beginning")] = 8,
    ranks: Annotated[str, typer.Option(metavar="RANK,...", help="of LoRA")] = "4,32",
    lrs: Annotated[str, typer.Option(metavar="RATE,...", help="LoRA's highest learning rates")] = "1e-4,4e-4,1.6e-3",
    full_lrs: Annotated[
        str, typer.Option(metavar="RATE,...", help="of all weights; empty: leave them out")
    ] = "1e-5,4e-5,1.6e-4",
    alpha: Annotated[float, typer.Option(help="updates are scaled by alpha / rank")] = 32.0,
    epochs: Annotated[int, typer.Option(min=1, help="how often all examples are read")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="WINDOWS", help="read before a step is taken")] = 8,
    context: texts.Context = 1024,
    seed: Annotated[int, typer.Option(min=0, help="of the order, random factors, and what is drawn")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Tune a model with all weights and with LoRA, at several learning rates, and show what each learned and forgot.

    Learning is measured on the validation examples: choose there, then measure your choice once on others
    (eckart lora train --test). OUT gets README.md, frontier.png and runs.jsonl; a run that is there is not run again.
    """
    import matplotlib  # noqa: F401  # what is missing shows before the runs

    from eckart.nn import language
    from eckart.nn.adapters.examples import encode
    from eckart.nn.adapters.frontier import figure_of, runs_of, trade
    from eckart.plot import frontier as drawn

    if output.is_dir() and any(output.iterdir()) and not (output / "runs.jsonl").exists():
        raise FileExistsError(f"{output} holds something else than runs of eckart: choose a new name")
    if split is None and validation_split and validation is None:
        raise typer.BadParameter("--split is not given: rows of DATA to validate on would be trained on too")
    runs = runs_of(
        _numbers(ranks, int, "--ranks"), _numbers(lrs, float, "--lrs"), _numbers(full_lrs, float, "--full-lrs")
    )
    tokenizer = language.load_tokenizer(base)
    with terminal.waiting("reading examples"):
        rows, others = divided(data, split, validation, validation_split, held, limit, seed)
        if not others:
            raise typer.BadParameter("--held is 0, or DATA has few rows: learning is measured on examples held out")
        examples, tests = (encode(x, tokenizer, prompt, completion) for x in (rows, others))
        known = language.windows_of(language.tokens_of(tokenizer, language.read_text(knew)), context, knew_windows)
    settings = {"alpha": alpha, "epochs": epochs, "batch": batch, "context": context, "seed": seed}
    with terminal.stages_bar("frontier") as progress:
        table = trade(base, examples, tests, known, runs, output, **settings, progress=progress)
    figure, _ = figure_of(table)
    drawn([row for row in table if "loss" in row], figure).figure.canvas.figure.savefig(
        output / "frontier.png", dpi=150
    )
    settings |= {"base": Path(base).resolve().name, "data": data.name, "text": knew.name}
    settings |= {"examples": len(examples), "validated_on": len(tests)}
    said = _report(table, figure, settings)
    (output / "README.md").write_text(said, "utf-8")
    if as_json:
        terminal.print_json({**settings, "rows": table, "output": str(output)})
    else:
        print(said)


def _numbers(text: str, kind: type, option: str) -> list[Any]:
    try:
        found = [kind(x) for x in text.split(",") if x.strip()]
    except ValueError:
        found = [-1]
    if any(x <= 0 for x in found):
        raise typer.BadParameter(
            f"{option} is {text!r}, expected numbers above 0 like {'4,32' if kind is int else '1e-4,1e-3'}"
        )
    return found


def _report(table: Sequence[Mapping[str, Any]], figure: str, settings: Mapping[str, Any]) -> str:
    """A page that a reader of the table's folder finds: in words, as a picture, as a table."""
    from eckart.nn.adapters.frontier import at_equal_learning

    def learned(row: Mapping[str, Any]) -> str:
        return f"{100 * row[figure]:.1f} %" if figure == "accuracy" else f"{row[figure]:.4f}"

    base, compared = table[0], at_equal_learning(table)
    lines = [f"# What {settings['base']} learned from {settings['data']}, and what it forgot of {settings['text']}", ""]
    lines += [f"Before: {figure} {learned(base)}, loss on the text {base['known_loss']:.4f} nats a token.", ""]
    for x in compared:
        best = x["best"]
        lines += [
            f"- **{x['method']}** learned most at the rate {best['lr']:g}: {figure} {learned(best)}, and the loss"
        ]
        lines += [f"  on the text rose by {best['rise']:.4f}."]
    if len(compared) > 1:
        lines += ["", "Where each learned at least as much as all of them can, they forgot:", ""]
        for x in sorted(compared, key=lambda x: x["equal"]["rise"]):
            equal = x["equal"]
            lines += [
                f"- {x['method']}: {equal['rise']:.4f}, with {figure} {learned(equal)} at the rate {equal['lr']:g}"
            ]
    for row in (row for row in table if "loss" not in row):
        lines += ["", f"{row['method']} at the rate {row['lr']:g} left the finite numbers: it has no figures."]
    names = ["method", "lr", *(["accuracy"] if figure == "accuracy" else []), "loss", "known_loss", "rise"]
    names += ["trained_numbers", "seconds"]
    lines += ["", "![learned against forgotten](frontier.png)", ""]
    lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in table]
    lines += ["", f"Settings: {json.dumps(dict(settings))}. One run a point: small differences say nothing.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
