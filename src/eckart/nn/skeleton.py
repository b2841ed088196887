"""The network of a model directory without its weights: names, kinds and shapes of layers, and where each weight is.

Layers that are tied share one tensor in the files, under one of their names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from eckart.core.extras import needed
from eckart.nn.weights import Weights, compressed_by, read_config, tied_to

__all__ = ["Skeleton"]


class Skeleton:
    """A transformers model of any architecture that transformers itself has, on the device "meta".

    Parameters
    ----------
    folder : path
    untied : bool
        Whether to build it as if config.json said that embedding and softmax are not tied.

    Attributes
    ----------
    config : dict
        config.json.
    weights : Weights
    network : Module

    Raises
    ------
    FileNotFoundError, ValueError
        No model there, a quantized or compressed one, or an architecture that transformers does not have.
    """

    def __init__(self, folder: str | os.PathLike[str], untied: bool = False) -> None:
        transformers, accelerate = needed("transformers", "hf"), needed("accelerate", "hf")
        self.folder, self.weights = Path(folder), Weights(folder)
        self.config = read_config(folder)
        if method := compressed_by(self.config):
            raise ValueError(f"{folder} is quantized or compressed, by {method}: start from the original")
        name = next(iter(self.config.get("architectures") or []), "")
        kind = getattr(transformers, name, None) if isinstance(name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise ValueError(f"{folder}: config.json has the architecture {name!r}, which transformers has not")
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if untied:
                config.tie_word_embeddings = False
            with accelerate.init_empty_weights(include_buffers=False):
                self.network: Any = kind(config)
        except (ValueError, KeyError, OSError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder}: no model that transformers knows: {reason}") from None

    def source(self, name: str) -> str:
        """Name of a parameter in the files: the same, or that of what it is tied to.

        Raises
        ------
        ValueError
            The files do not have it, or with another shape.
        """
        shape = tuple(self.network.get_parameter(name).shape)
        return self.weights.source(name, self.tied_to(name), shape, type(self.network).__name__)

    def read(self, name: str) -> torch.Tensor:
        """Read a parameter in its own dtype."""
        tensor = self.weights.read(self.source(name))
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"{self.folder}: {name} is stored as {tensor.dtype}, expected floats of 16 bits or more")
        return tensor

    def tied_to(self, name: str) -> set[str]:
        """Names of the other parameters that share the tensor of this one."""
        return tied_to(self.network, name)
