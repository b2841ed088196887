"""Texts as tokens, and perplexity with everything that decides on its value stated.

    perplexity = exp( - mean log p(token | what stands before it in its window) )

A window is `context` tokens. Windows start every `stride` tokens and count only tokens that no earlier window has
counted; the first token of the text has nothing before it and counts only after a BOS. With stride = context every
window starts afresh, which is what most papers report; a smaller stride gives every token more to go by, and a lower
figure: compare at equal context, stride and BOS only.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from eckart.core.extras import needed
from eckart.nn.weights import Weights

__all__ = [
    "Perplexity",
    "check_device",
    "divergence",
    "load_model",
    "load_tokenizer",
    "needed_tokens",
    "perplexity",
    "quiet",
    "read_text",
    "tokens_of",
    "windows_of",
]

_OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


class Perplexity(NamedTuple):
    """What was measured, and how."""

    perplexity: float
    loss: float  # mean negative log probability of a token, in nats
    tokens: int  # that were predicted
    context: int
    stride: int
    bos: bool


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file: UTF-8, plain or compressed (.xz, .gz, .bz2).

    Raises
    ------
    ValueError
        It is empty, or not UTF-8.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.txt")
    ...     _ = file.write_text("Once upon a time")
    ...     read_text(file)
    'Once upon a time'
    """
    try:
        with _OPENERS.get(Path(path).suffix, open)(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start:,} is not UTF-8 text") from None
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: cannot be unpacked: {error}") from None
    if not text.strip():
        raise ValueError(f"{path}: the text is empty")
    return text


def load_model(folder: str | os.PathLike[str]) -> Any:
    """Load a causal language model, compressed or not, in float32 for evaluation. Nothing is downloaded.

    Raises
    ------
    FileNotFoundError, ValueError
        No such model, or weights that do not fit it.
    """
    transformers, weights = needed("transformers", "hf"), Weights(folder)
    try:
        with quiet():
            model, facts = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: transformers cannot load it: {reason}") from None
    if facts["missing_keys"]:  # transformers fills them with noise, and says so where few look
        missing = ", ".join(sorted(facts["missing_keys"])[:3])
        raise ValueError(f"{weights.folder}: {len(facts['missing_keys'])} weights are not in the files: {missing}, ...")
    return model.eval()


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here.

    Raises
    ------
    ValueError
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise ValueError(f"device is {device!r}, which torch does not have here: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    logging = needed("transformers", "hf").utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """Load a model directory's tokenizer. Nothing is downloaded.

    Raises
    ------
    FileNotFoundError, ValueError
        No such directory, or no tokenizer in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no directory: expected that of a Hugging Face model")
    try:
        return needed("transformers", "hf").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: no tokenizer that transformers can load: {reason}") from None


def tokens_of(tokenizer: Any, text: str) -> torch.Tensor:
    """Tokens of a text, nothing added: (n,) int64."""
    # Whole texts are longer than the model's context, on purpose; `verbose` would warn of that.
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def windows_of(tokens: torch.Tensor, context: int, windows: int | None = None) -> torch.Tensor:
    """Cut the beginning of a text into windows that do not overlap, dropping what is left over.

    Parameters
    ----------
    tokens : (n,) int64
    context : int
        Tokens a window, at least 2.
    windows : int, optional
        How many; by default all that are there. A text that holds fewer gives fewer.

    Returns
    -------
    (windows, context) int64

    Raises
    ------
    ValueError
        The text is shorter than one window.

    Examples
    --------
    >>> windows_of(torch.arange(7), context=3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    _check_length(tokens, context)
    count = len(tokens) // context
    count = count if windows is None else min(count, windows)
    return tokens[: count * context].view(count, context)


def needed_tokens(windows: int, context: int, stride: int | None = None, bos: bool = False) -> int:
    """Count the tokens of a text that so many windows of `perplexity` take.

    Examples
    --------
    >>> needed_tokens(8, 1024), needed_tokens(2, 100, stride=50)
    (8192, 150)
    """
    own = context - bos
    return own + (windows - 1) * (own if stride is None else stride)


@torch.no_grad()
def perplexity(
    model: Any,
    tokens: torch.Tensor,
    context: int = 1024,
    stride: int | None = None,
    bos: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure how well a causal language model predicts a text.

    Parameters
    ----------
    model : callable
        ``model(input_ids, use_cache=False).logits``, as models of transformers are; where it is, tokens are sent.
    tokens : (n,) int64
        Of the text; its end that fills no window is left out.
    context : int
        Tokens a window, the BOS included.
    stride : int, optional
        Tokens from one window's start to the next; by default windows do not overlap.
    bos : int, optional
        Token to put before every window.
    progress : callable, optional
        Called with windows done and in all.

    Returns
    -------
    Perplexity

    Raises
    ------
    ValueError
        A text shorter than one window, or a stride out of range.
    """
    own = context - (bos is not None)  # tokens of the text in a window
    stride = own if stride is None else stride
    if not 1 <= stride <= own:
        raise ValueError(f"stride is {stride}, expected 1 to {own}, the tokens of a window")
    _check_length(tokens, context, own)
    device = next(iter(model.parameters())).device if hasattr(model, "parameters") else "cpu"
    starts = range(0, len(tokens) - own + 1, stride)
    total, counted = 0.0, 0
    for done, start in enumerate(starts):
        window = tokens[start : start + own]
        if bos is not None:
            window = torch.cat([torch.tensor([bos]), window])
        window = window.to(device)
        new = context - 1 if start == 0 else min(stride, context - 1)
        logits = model(window[None], use_cache=False).logits[0, -new - 1 : -1]
        total += F.cross_entropy(logits.float(), window[-new:], reduction="sum").item()
        counted += new
        if progress:
            progress(done + 1, len(starts))
    loss = total / counted
    return Perplexity(math.exp(loss) if loss < 700 else math.inf, loss, counted, context, stride, bos is not None)


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL divergence of a student's predictions from a teacher's, in nats: the mean over rows.

    Parameters
    ----------
    student, teacher : Tensor of shape (..., classes)
        Logits.

    Examples
    --------
    >>> sure, unsure = torch.tensor([[50.0, 0.0]]), torch.zeros(1, 2)
    >>> [round(float(x), 3) for x in (divergence(unsure, sure), divergence(sure, sure))]
    [0.693, 0.0]
    """
    q, p = (x.float().flatten(0, -2).log_softmax(-1) for x in (student, teacher))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def _check_length(tokens: torch.Tensor, context: int, own: int | None = None) -> None:
    if context < 2:
        raise ValueError(f"context is {context}, expected at least 2: something to predict, and from what")
    if len(tokens) < (own or context):
        raise ValueError(
            f"the text has {len(tokens):,} tokens, expected at least {own or context:,}, one context: "
            "give a longer text, or a smaller context"
        )
