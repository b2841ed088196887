"""The tensors of a model directory: one is read when it is asked for, whatever its shards are.

Only safetensors are read; a file that would have to be unpickled is refused with a sentence. What a file claims of
itself is checked before anything of it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

__all__ = ["METHOD", "Weights", "compressed_by", "read_config", "tied_to"]

METHOD = "eckart"  # quantization_config.quant_method of a compressed model

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """Tensors of a model directory, by name.

    Parameters
    ----------
    folder : path

    Raises
    ------
    FileNotFoundError, ValueError
        No such directory, no safetensors in it, or an index that does not fit the files.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder} is no directory: expected that of a Hugging Face model")
        if (self.folder / _INDEX).exists():
            try:
                listed = json.loads((self.folder / _INDEX).read_bytes())["weight_map"]
                files = sorted({str(file) for file in listed.values()})
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.folder / _INDEX} is no index of weights") from None
        elif (self.folder / _ONE).exists():
            files = [_ONE]
        else:
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))
            reason = "its weights are pickled; save them as safetensors" if pickled else f"it has no {_ONE}"
            raise FileNotFoundError(f"{folder}: {reason}")
        self._open: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        for file in files:
            if Path(file).name != file:
                raise ValueError(f"{self.folder / _INDEX} names the file {file!r}, expected one beside it")
            try:
                self._open[file] = safe_open(str(self.folder / file), framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{self.folder / file} is damaged: {error}") from None
            for name in self._open[file].keys():  # noqa: SIM118  (no mapping)
                self._where[name] = file

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, unread."""
        return tuple(self._open[self._where[name]].get_slice(name).get_shape())

    def source(self, name: str, tied: Collection[str], shape: tuple[int, ...], model: str) -> str:
        """Give the name that a parameter is stored under: its own, or that of what it is tied to.

        Parameters
        ----------
        name : str
        tied : collection of str
            Parameters that share its tensor, see `tied_to`.
        shape : tuple of int
            That the model has.
        model : str
            Kind of the model, for the error.

        Raises
        ------
        ValueError
            The files do not have it, or with another shape.
        """
        found = next((other for other in (name, *sorted(tied)) if other in self), None)
        if found is None:
            raise ValueError(
                f"{self.folder}: the weights have no {name!r}, which {model} needs: "
                "save the model with the installed version of transformers first"
            )
        if self.shape(found) != shape:
            raise ValueError(f"{self.folder}: {found} has the shape {self.shape(found)}, expected {shape}")
        return found

    def bytes_of(self, name: str) -> int:
        """Size of a tensor."""
        stored = self._open[self._where[name]].get_slice(name)
        return math.prod(stored.get_shape()) * stored[:1].element_size()

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Read a tensor in its own dtype, or an element of it along its first axis.

        Raises
        ------
        ValueError
            A value in it is not finite.
        """
        opened = self._open[self._where[name]]
        tensor = opened.get_tensor(name) if index is None else opened.get_slice(name)[index : index + 1][0]
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            file = self.folder / self._where[name]
            raise ValueError(f"{file}: {name} has a value that is not finite: the model is damaged")
        return tensor

    def bytes(self) -> int:
        """Size of the files."""
        return sum((self.folder / file).stat().st_size for file in self._open)

    def fingerprint(self) -> list[list[object]]:
        """Say which files these are: names, sizes and times of change."""
        stats = [(file, (self.folder / file).stat()) for file in sorted(self._open)]
        return [[file, x.st_size, x.st_mtime_ns] for file, x in stats]


def tied_to(model: Any, name: str) -> set[str]:
    """Names of the other parameters of a transformers model that share the tensor of this one."""
    pairs = (getattr(model, "all_tied_weights_keys", None) or {}).items()
    group, before = {name}, set[str]()
    while group != before:
        before = set(group)
        for pair in pairs:
            group |= set(pair) if group & set(pair) else set()
    return group - {name}


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a model directory's config.json.

    Raises
    ------
    FileNotFoundError, ValueError
        It is not there, or is no JSON object.
    """
    path = Path(folder) / "config.json"
    config: Any = None
    with suppress(ValueError):
        config = json.loads(path.read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object")
    return config


def compressed_by(config: dict[str, Any]) -> str | None:
    """Say by which method the weights were quantized or compressed, if they were; "something" where it has no name.

    Examples
    --------
    >>> compressed_by({"model_type": "llama"}), compressed_by({"quantization_config": {"quant_method": "gptq"}})
    (None, 'gptq')
    """
    if config.get("model_type") == METHOD:  # standalone
        return METHOD
    if "quantization_config" not in config:
        return None
    stored = config["quantization_config"]
    return str(stored.get("quant_method", "something")) if isinstance(stored, dict) else "something"
