"""A model directory written whole: beside its target, then renamed into its place, so that there is never half a model.

Tensors come one at a time, and as many are in memory as one file of weights holds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from eckart.core.replace import flush, locked, scratch_of, swap, sweep
from eckart.nn.weights import METHOD, compressed_by, read_config

__all__ = ["check_target", "copy_rest", "refuse_other", "replaced_whole", "write_shards", "write_whole"]

_SHARD = 1 << 30  # bytes a file: what is in memory while it is written
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")  # tokenizers, templates, terms; no code


def check_target(out: str | os.PathLike[str]) -> Path:
    """Refuse a target that is something else than what eckart wrote or an empty directory; give its real path.

    Raises
    ------
    FileExistsError
    """
    return refuse_other(out, _is_ours, "what eckart wrote")


def _is_ours(target: Path) -> bool:
    try:
        method = compressed_by(read_config(target))
    except (ValueError, OSError):
        method = None
    return method == METHOD or (method is None and (target / "eckart.json").exists())


def refuse_other(out: str | os.PathLike[str], is_ours: Callable[[Path], bool], what: str) -> Path:
    """Refuse a target that is neither new, nor empty, nor a directory that may be replaced; give its real path.

    Parameters
    ----------
    out : path
    is_ours : callable
        Whether a directory that holds something may be replaced.
    what : str
        What such a one holds, for the error.

    Raises
    ------
    FileExistsError
    """
    target = Path(os.path.realpath(out))
    if target.is_dir() and any(target.iterdir()):
        if not is_ours(target):
            raise FileExistsError(f"{out} holds something else than {what}: choose a new name")
    elif target.exists() and not target.is_dir():
        raise FileExistsError(f"{out} is a file: choose a new name for a directory")
    return target


@contextmanager
def replaced_whole(
    out: str | os.PathLike[str], size: int, check: Callable[[str | os.PathLike[str]], Path] = check_target
) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `out` if all goes well and else is deleted.

    Parameters
    ----------
    out : path
    size : int
        Bytes that it may take, about.
    check : callable
        Gives the real path of `out`, or refuses it: see `check_target`.

    Raises
    ------
    FileExistsError, OSError
        The target is something else, or the disk has too little space left.
    """
    target = check(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target.parent).free < int(size * 1.01) + (8 << 20):  # with an index and cards
        raise OSError(f"{out}: the disk has too little space left, the model may take {size / 1e6:,.0f} MB")
    with ExitStack() as held:
        with locked(target.parent):
            sweep(target)
            scratch = scratch_of(target)
            scratch.mkdir()
            held.enter_context(locked(scratch))
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch
        for file in scratch.iterdir():
            flush(file)
        flush(scratch)
        with locked(target.parent):
            check(out)
            swap(scratch, target)


def copy_rest(source: Path, scratch: Path) -> None:
    """Copy what stands beside the weights of a model: configs, tokenizer, terms; no code."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".safetensors.index.json"):
                shutil.copyfile(file, scratch / file.name)


def write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write tensors as they come, a file of safetensors at a time, with an index if there are several."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}

    def write() -> None:
        file = folder / f"part-{len(shards)}.safetensors"
        try:
            save_file(held, str(file), {"format": "pt"})
        except Exception as error:  # safetensors has an exception of its own for a full disk
            raise OSError(f"{file}: cannot be written: {error}") from None
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > _SHARD:
            write()
        held[name] = tensor
    write()
    if len(shards) == 1:
        os.rename(folder / "part-0.safetensors", folder / "model.safetensors")
        return
    where, total = {}, 0
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        os.rename(folder / f"part-{i}.safetensors", folder / file)
        total += (folder / file).stat().st_size
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def write_whole(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a file, which is whole or not there."""
    part = file.with_suffix(".part")
    try:
        save_file({name: x.cpu() for name, x in tensors.items()}, str(part), metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{file}: cannot be written: {error}") from None
    os.replace(part, file)  # whole, or not there
