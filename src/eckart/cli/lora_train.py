"""``eckart lora train``: fine-tune a language model on examples, by an adapter or whole."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.cli import terminal, texts

__all__ = ["Completion", "Held", "HeldFile", "HeldSplit", "Limit", "Prompt", "Split", "divided", "train"]

Prompt = Annotated[
    str | None, typer.Option(metavar="PATTERN", help='what is given, with columns in braces: "Review: {text}"')
]
Completion = Annotated[str | None, typer.Option(metavar="PATTERN", help="what is to be learned, likewise")]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="only rows whose column 'split' says this")]
HeldFile = Annotated[
    Path | None, typer.Option("--validation", metavar="FILE", help="examples to validate on  [default: some of DATA]")
]
HeldSplit = Annotated[str | None, typer.Option("--validation-split", metavar="NAME", help="of DATA, or of that file")]
Held = Annotated[
    int, typer.Option(min=0, metavar="EXAMPLES", help="at most so many to validate on; of DATA at most a twentieth")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="EXAMPLES", help="train on only so many, drawn by --seed")]


def train(
    base: Annotated[str, typer.Argument(metavar="BASE", help="directory of a Hugging Face language model")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="examples: .jsonl, .parquet or .csv")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="directory to write to")],
    prompt: Prompt = None,
    completion: Completion = None,
    split: Split = None,
    validation: HeldFile = None,
    validation_split: HeldSplit = None,
    held: Held = 200,
    limit: Limit = None,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="examples to measure on, before and after")] = None,
    test_split: Annotated[str | None, typer.Option(metavar="NAME", help="of DATA, or of that file")] = None,
    knew: Annotated[Path | None, typer.Option(metavar="TEXT", help="text to measure on too: what is forgotten")] = None,
    knew_windows: Annotated[int, typer.Option(min=1, metavar="WINDOWS", help="of that text, from its beginning")] = 8,
    full: Annotated[bool, typer.Option("--full", help="train all weights, and write the whole model")] = False,
    rank: Annotated[int, typer.Option(min=1, help="of the updates")] = 16,
    alpha: Annotated[float, typer.Option(help="updates are scaled by alpha / rank")] = 32.0,
    rank_of: Annotated[
        list[str] | None, typer.Option(metavar="NAME=RANK", help="another rank for layers of this name; several times")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="NUMBERS", help="train so many, in ranks that follow from the gradients"),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="only layers of this name, * for anything")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="leave layers of this name alone")] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="scale by alpha / sqrt(rank)")] = False,
    dora: Annotated[bool, typer.Option("--dora", help="train magnitudes of rows as well")] = False,
    init: Annotated[
        str,
        typer.Option(help="where updates start: zero-b, gauss-b, pissa, data-aware or gradient-aligned"),
    ] = "zero-b",
    lr: Annotated[
        float | None, typer.Option(help="highest learning rate  [default: 2e-4, of all weights 2e-5]")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="how often all examples are read")] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="WINDOWS", help="read before a step is taken")] = 8,
    at_once: Annotated[
        int, typer.Option(min=1, metavar="WINDOWS", help="of them read at a time: more take more memory")
    ] = 1,
    context: texts.Context = 1024,
    apart: Annotated[bool, typer.Option("--apart", help="one example a window, not as many as fit")] = False,
    warmup: Annotated[float, typer.Option(min=0, max=1, help="share of the steps over which the rate rises")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0, help="of AdamW")] = 0.0,
    validate_every: Annotated[
        int | None, typer.Option(min=0, metavar="STEPS", help="0: at both ends  [default: a tenth of all]")
    ] = None,
    patience: Annotated[int, typer.Option(min=0, help="stop after so many validations without a gain; 0: never")] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="keep less in memory, and compute it twice")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    bfloat16: Annotated[
        bool | None,
        typer.Option(
            "--bfloat16/--float32", help="precision of products  [default: 16 bits where the device has them]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the order, random factors, and what is held out")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the losses (.png, .svg, .pdf)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train an adapter of low rank for a language model on examples; or, for comparison, all of its weights.

    Rows have "text", or "prompt" and "completion", or "messages" (a chat); patterns make a prompt and a completion of
    other columns. Of prompts nothing is learned. What is kept is what was best on the examples held out. A run that was
    stopped goes on where it was; torchrun --no-python eckart lora train ... shares it among processes.
    """
    from eckart.nn import language
    from eckart.nn.adapters.examples import encode, read_rows
    from eckart.nn.adapters.training import train_model
    from eckart.nn.output import check_target

    check_target(output)
    terminal.check_picture(plot)
    ranks = {}
    for pair in rank_of or ():
        name, _, number = pair.rpartition("=")
        if not name or not (number.isascii() and number.isdecimal()):
            raise typer.BadParameter(f"--rank-of is {pair!r}, expected NAME=RANK")
        ranks[name] = int(number)
    of_updates = {"--layer": layer, "--skip": skip, "--rank-of": rank_of, "--budget": budget, "--rslora": rslora}
    for name, given in (of_updates | {"--dora": dora, "--init": init != "zero-b"}).items():
        if full and given:
            raise typer.BadParameter(f"--full trains all weights: leave out {name}")
    if split is None and ((test_split and test is None) or (validation_split and validation is None)):
        raise typer.BadParameter("--split is not given: rows of DATA to test or validate on would be trained on too")
    started = time.perf_counter()
    tokenizer = language.load_tokenizer(base)
    with terminal.waiting("reading examples"):
        rows, others = divided(data, split, validation, validation_split, held, limit, seed)
        examples = encode(rows, tokenizer, prompt, completion)
        judged = encode(others, tokenizer, prompt, completion) if others else []
        tests = []
        if test is not None or test_split is not None:
            tests = encode(read_rows(test or data, test_split), tokenizer, prompt, completion)
    known = None
    if knew is not None:
        known = language.windows_of(language.tokens_of(tokenizer, language.read_text(knew)), context, knew_windows)
    asked: dict[str, Any] = {"rank": rank, "alpha": alpha, "rslora": rslora, "dora": dora, "init": init, "ranks": ranks}
    asked |= {"patterns": tuple(layer or ("*",)), "skip": tuple(skip or ()), "budget": budget, "full": full}
    asked |= {"lr": lr, "epochs": epochs, "batch": batch, "at_once": at_once, "context": context, "together": not apart}
    asked |= {"warmup": warmup, "weight_decay": weight_decay, "validate_every": validate_every, "patience": patience}
    asked |= {"checkpointing": checkpointing, "device": device, "bfloat16": bfloat16, "seed": seed}
    with terminal.stages_bar("training") as show:
        made = train_model(base, output, examples, judged, tests=tests, known=known, **asked, progress=show)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")):
        return
    if made["left_out"]:
        terminal.note(f"eckart: {made['left_out']:,} examples are longer than {context} tokens, and were left out")
    if plot is not None:
        from eckart.plot import training

        training(made["losses"], made["validated"]).figure.canvas.figure.savefig(plot, dpi=150)
    facts = {name: value for name, value in made.items() if name not in ("losses", "validated")}
    facts |= {"loss": [made["losses"][0], made["losses"][-1]], "examples": len(examples)}
    if made["validated"]:
        facts |= {"held_out": len(judged), "validation_loss": [made["validated"][0][1], _best(made["validated"])]}
    facts |= {"output": str(output), "seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        terminal.print_json({**made, **facts})
    else:
        terminal.print_facts("trained", facts)


def divided(
    data: Path,
    split: str | None,
    validation: Path | None,
    validation_split: str | None,
    held: int,
    limit: int | None,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the rows to learn from and those to validate on, both in random order."""
    from eckart.nn.adapters.examples import drawn, read_rows

    rows = read_rows(data, split)
    rows = drawn(rows, len(rows), seed)
    if validation is not None or validation_split is not None:
        others = drawn(read_rows(validation or data, validation_split), held, seed)
    else:
        size = min(held, len(rows) // 20)
        rows, others = rows[size:], rows[:size]
    return rows[: limit or len(rows)], others


def _best(validated: list[list[float]]) -> float:
    return min(loss for _, loss in validated)
