"""Texts as vectors, by a transformer that lies in a directory: a sentence encoder.

The vector of a text is the mean of the last layer's vectors of its tokens, to unit length: what sentence-transformers
calls mean pooling and Normalize. Nothing is downloaded, no code from the directory is run, and weights are read from
safetensors only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eckart.core.extras import needed

__all__ = ["sentence_encoder"]

_JSON = 1 << 20  # bytes of a configuration


def sentence_encoder(
    directory: str | os.PathLike[str],
    *,
    batch: int = 64,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[Sequence[str]], np.ndarray]:
    """Load a sentence encoder from a directory.

    Parameters
    ----------
    directory : path
        As sentence-transformers or transformers saves a model: config.json, model.safetensors, the tokenizer.
    batch : int
        Texts at a time, those of about the same length together.
    device : str
        Where torch computes: 'cpu', 'cuda', 'mps'.
    progress : callable, optional
        ``progress(done, total)``, a number of texts, after each batch.

    Returns
    -------
    callable
        From n texts to an (n, d) float32 array, rows of unit length; each text is cut to as many tokens as the model
        takes. Give it to `Features.encoded`.

    Raises
    ------
    ImportError
        transformers or torch is not installed.
    FileNotFoundError
        No such directory, or no model in it.
    ValueError
        It cannot be loaded, or pools in another way.

    Examples
    --------
    >>> encode = sentence_encoder("models/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> films = films.encoded("plot", encode)  # doctest: +SKIP
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such directory: give one that holds a model, nothing is downloaded.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no config.json: give a directory that transformers saved a model to.")
    _check_pooling(folder)
    torch, transformers = needed("torch", "hf"), needed("transformers", "hf")
    tokenizer, model = _loaded(transformers, folder)
    model = model.float().eval().to(device)
    limit = _token_limit(folder, tokenizer, model.config)

    def encode(texts: Sequence[str]) -> np.ndarray:
        texts = [str(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for begin in range(0, len(order), batch):
            chosen = [texts[i] for i in order[begin : begin + batch]]
            tokens = tokenizer(chosen, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
            with torch.inference_mode():
                hidden = model(**tokens).last_hidden_state
                mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
                parts.append(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())
            if progress:
                progress(begin + len(chosen), len(order))
        vectors = np.empty((len(texts), parts[0].shape[1] if parts else model.config.hidden_size), np.float32)
        if parts:
            vectors[order] = np.concatenate(parts)
        return vectors

    return encode


def _loaded(transformers: Any, folder: Path) -> tuple[Any, Any]:
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **only_here)
        model = transformers.AutoModel.from_pretrained(str(folder), use_safetensors=True, **only_here)
    except Exception as error:  # transformers raises what it likes on files that it cannot read
        said = " ".join(str(error).split())
        said = said if len(said) <= 200 else f"{said[:197]}..."
        raise ValueError(
            f"{folder}: cannot be loaded as a sentence encoder ({type(error).__name__}: {said}): "
            f"expected config.json, model.safetensors and a tokenizer of transformers."
        ) from None
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
    if model.config.is_encoder_decoder:
        raise ValueError(f"{folder}: is an encoder with a decoder, expected an encoder alone.")
    return tokenizer, model


def _check_pooling(folder: Path) -> None:
    pooling = _json(folder / "1_Pooling" / "config.json")
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    if (modes and modes != ["pooling_mode_mean_tokens"]) or pooling.get("pooling_mode", "mean") != "mean":
        raise ValueError(
            f"{folder}: does not pool by the mean, as its 1_Pooling/config.json says, and nothing else is known here: "
            f"give Features.encoded a function that encodes with the library it comes from."
        )


def _token_limit(folder: Path, tokenizer: Any, config: Any) -> int:
    """How many tokens a text may have: what the model was saved with, and what its positions allow."""
    saved = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    limit = saved if type(saved) is int and saved > 2 else tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None) or 512
    return limit if limit <= positions else positions - 2  # RoBERTa and its kin keep two positions for themselves


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _JSON:
            raise ValueError("it is too long")
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is damaged ({' '.join(str(error).split())[:150]}): copy the model again.") from None
    return found if isinstance(found, dict) else {}
