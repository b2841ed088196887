"""A causal language model as ONNX, for engines without Python.

    input_ids, attention_mask, both int64 (batch, length)  ->  logits, float32 (batch, length, vocabulary)

for whole sequences of any length, in batches padded at either end: no cache of keys and values goes in or out. Layers
of low rank stay two products. The new model is run once in onnxruntime, on sequences of another shape than the one
that it was traced with, and compared with torch before it takes its place.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import eckart
from eckart.core.extras import needed
from eckart.nn.calibrate import Progress
from eckart.nn.experts import stacks_in
from eckart.nn.language import load_model, load_tokenizer
from eckart.nn.output import refuse_other, replaced_whole
from eckart.nn.weights import Weights

__all__ = ["check_export_target", "export_model"]

_FILE, _FACTS = "model.onnx", "export.json"
_MOST = 1e-3  # of the largest logit: another order of the same sums stays below 1e-5


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def check_export_target(out: str | os.PathLike[str]) -> Path:
    """Refuse a target that is something else than an exported model or an empty directory.

    Raises
    ------
    FileExistsError
    """
    return refuse_other(
        out, lambda target: (target / _FILE).exists() and (target / _FACTS).exists(), "a model that eckart exported"
    )


def export_model(
    model: str | os.PathLike[str], out: str | os.PathLike[str], *, progress: Progress | None = None
) -> dict[str, Any]:
    """Write a causal language model, compressed or not, as a directory with model.onnx and its tokenizer.

    Parameters
    ----------
    model : path
        Directory with config.json and safetensors. It is loaded whole, in float32, and for a while is in memory thrice.
    out : path
        Written whole or not at all; an exported model that is there is replaced. Above 1.5 GB the weights are in a file
        of their own, model.onnx.data.
    progress : callable, optional

    Returns
    -------
    dict
        Also kept as export.json: bytes, opset, and the largest difference to torch's logits that was seen.

    Raises
    ------
    ImportError
        A package of the extra ``onnx`` is missing.
    FileExistsError, FileNotFoundError, OSError, ValueError
        The target is something else, no such model, no space on the disk, or a model that torch cannot trace or that
        computes something else in onnxruntime.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package, "onnx")
    check_export_target(out)
    stages = 4
    tell = progress or (lambda stage, done, total: None)
    tell("loading", 0, stages)
    loaded = load_model(model)
    if stacks_in(loaded):
        raise ValueError(f"{model}: its experts were compressed, and torch cannot trace which of them get which tokens")
    size = sum(x.nbytes for x in loaded.state_dict().values())
    with replaced_whole(out, size, check_export_target) as scratch:
        tell("tracing", 1, stages)
        program = _traced(loaded, str(model))
        tell("writing", 2, stages)
        try:
            program.save(scratch / _FILE)
        except Exception as error:  # a full disk has several names
            raise OSError(f"{out}: cannot be written: {error}") from None
        facts: dict[str, Any] = {"eckart": eckart.__version__, "opset": program.model.opset_imports[""]}
        del program
        tell("comparing", 3, stages)
        facts["difference"] = _difference(loaded, scratch / _FILE, str(model))
        facts["bytes_before"] = Weights(model).bytes()
        facts["bytes_after"] = sum(file.stat().st_size for file in scratch.glob(f"{_FILE}*"))
        (scratch / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", "ascii")
        loaded.config.save_pretrained(scratch)
        with suppress(ValueError):  # there is no tokenizer
            load_tokenizer(model).save_pretrained(scratch)
    return facts


def _traced(model: Any, name: str) -> Any:
    tokens = torch.ones(2, 8, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                _Logits(model).eval(),
                (tokens, torch.ones_like(tokens)),  # two tensors: one would be traced as one input
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{name}: torch cannot export {type(model).__name__}: {reason}") from None
        assert program is not None  # as it is with dynamo=True
        passes: Any = needed("onnx_ir.passes.common", "onnx")
        passes.ClearMetadataAndDocStringPass()(program.model)  # where on this machine each node comes from
    return program


def _difference(model: Any, file: Path, name: str) -> float:
    """Give the largest difference to torch's logits on three sequences, one padded before it and one after it."""
    runtime = needed("onnxruntime", "onnx")
    tokens = torch.randint(model.config.vocab_size, (3, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :4], mask[2, 17:] = 0, 0
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
    seen = mask.bool()
    difference = float((torch.from_numpy(logits)[seen] - expected[seen]).abs().max())
    if not difference <= _MOST * float(expected[seen].abs().max()):
        raise ValueError(
            f"{name}: in onnxruntime the logits differ by {difference:.3g} from torch's, "
            f"expected {_MOST:g} of the largest at most: torch does not export this architecture as it is"
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    # It tells its progress by warnings and by its log, and that a package of vision is not there.
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
