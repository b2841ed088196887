"""Model directories: config.json and safetensors files, replaced whole.

Writing goes to a scratch directory that then takes the target's place (core/replace.py). Reading: a file is
hostile until its name, size and checksum agree with config.json and its parser and the bounds here accept it;
nothing in it is run. The page for users is docs/model-directory.md.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import re
import shutil
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from safetensors import safe_open

from eckart.core.replace import backup_of, descriptor, flush, locked, scratch_of, swap, sweep

__all__ = ["check_replaceable", "read_directory", "take_tensor", "write_directory"]

FORMAT_VERSION = 1
_CONFIG = "config.json"
_CONFIG_BYTES = 16 << 20  # 16 MiB of '[],' become about 400 MiB of Python lists: enough, and bearable
_FILES = 256
_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_STRING = np.dtypes.StringDType()
_TENSOR_DTYPES = {
    **{"F16": "float16", "F32": "float32", "F64": "float64"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
}  # not bool: NumPy does not define what a bool array holding the byte 2 does, and a file can hold that
_IDS = ".ids"  # what the stem of an id table's file ends with
_WRITTEN = 1 << 20  # elements at a time: of a mapped array, no more is in memory
_HEADER_BYTES = 1 << 20  # of a file that is mapped


def write_directory(
    path: str | os.PathLike[str],
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    ids: Mapping[str, np.ndarray],
) -> None:
    """Write a model directory, or replace the one at `path`: a reader finds the old or the new, never a mix.

    This holds when the process is killed at any moment. The same arguments give the same bytes. Missing
    parent directories are made; a link at `path` is followed.

    Parameters
    ----------
    path : path
        A new name, an empty directory, or a model directory of the same kind.
    kind : str
        What is stored, for example "recommender"; a reader has to ask for it.
    config : mapping of str to JSON values
        Kept in config.json. Floats come back exactly.
    tensors : mapping of file stem to mapping of name to ndarray
        Integers, unsigned integers and floats of any shape; each stem becomes STEM.safetensors.
    ids : mapping of file stem to ndarray of shape (n,)
        int64, or NumPy's variable-length strings (``StringDType()``); each stem becomes STEM.ids.safetensors.

    Raises
    ------
    FileExistsError
        `path` is something else than a model directory of this kind, or holds a file that is not the model's.
    ValueError
        Something that the format does not hold: a NaN in `config`, a dtype, a file stem with a slash.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     factors = {"items": np.ones((2, 3), np.float32)}
    ...     write_directory(f"{folder}/m", "demo", {"reg": 0.1}, {"als": factors}, {"items": np.arange(2)})
    ...     config, tensors, ids = read_directory(f"{folder}/m", "demo")
    >>> config, tensors["als"]["items"].shape, ids["items"]
    ({'reg': 0.1}, (2, 3), array([0, 1]))
    """
    target = Path(os.path.realpath(path))
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": dict(config),
        "files": {},
    }
    _check_contents(document, tensors, ids)
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with locked(target.parent):
            _refuse_others(target, kind)
            sweep(target)
            scratch = scratch_of(target)
            scratch.mkdir()
            held.enter_context(locked(scratch))  # says "my writer is alive" to the next sweep
        held.callback(shutil.rmtree, scratch, ignore_errors=True)  # finds nothing once it was renamed
        for stem, arrays in (
            *tensors.items(),
            *((stem + _IDS, _pack(column)) for stem, column in ids.items()),
        ):
            file = scratch / f"{stem}.safetensors"
            try:
                document["files"][file.name] = _save_tensors(file, arrays)
            except OSError as error:  # a full disk, for one
                raise OSError(f"{file}: cannot be written: {error}") from None
        document["crc32"] = _crc32(_canonical(document))
        (scratch / _CONFIG).write_text(json.dumps(document, sort_keys=True, indent=2) + "\n", "ascii")
        for name in (*document["files"], _CONFIG, "."):
            flush(scratch / name)
        with locked(target.parent):
            _refuse_others(target, kind)  # again: minutes may have passed
            swap(scratch, target)


def read_directory(
    path: str | os.PathLike[str], kind: str, mapped: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Read and check a model directory; safe on files from strangers and beside a writer that replaces it.

    Parameters
    ----------
    path : path
        What was given to `write_directory`.
    kind : str
        The kind that is expected there.
    mapped : collection of file stem
        Files whose arrays are left on disk: read-only, and paged in where they are touched. They must not be
        cut or changed in place while they are in use; `write_directory` does not.

    Returns
    -------
    config, tensors, ids : dict, dict of dict of ndarray, dict of ndarray
        As given to `write_directory`. Arrays are writable and share no memory. Shapes, the order of ids
        and the meaning of `config` are the caller's to check: see `take_tensor`.

    Raises
    ------
    FileNotFoundError
        There is no directory, no config.json, or a file is missing that config.json lists.
    ValueError
        It is no model directory, another kind, written by a newer eckart, damaged, or hostile.

    Examples
    --------
    >>> read_directory("no-such-model", "recommender")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no-such-model does not exist: give the path of a recommender directory
    """
    with ExitStack() as opened:
        document, files = _open_model(Path(path), kind, opened)
        tensors: dict[str, dict[str, np.ndarray]] = {}
        ids: dict[str, np.ndarray] = {}
        for name, fd in files.items():
            stem = name.removesuffix(".safetensors")
            with _damage(Path(path) / name):
                claimed = document["files"][name]
                if os.fstat(fd).st_size != claimed["bytes"]:
                    raise ValueError(f"it has {os.fstat(fd).st_size} bytes, {_CONFIG} says {claimed['bytes']}")
                if _crc32(fd) != claimed["crc32"]:
                    raise ValueError("its checksum is wrong")
                arrays = _map_tensors(fd) if stem in mapped else _read_tensors(fd)
                if stem.endswith(_IDS):
                    ids[stem.removesuffix(_IDS)] = _unpack(arrays)
                else:
                    tensors[stem] = arrays
    return document["config"], tensors, ids


def check_replaceable(path: str | os.PathLike[str], kind: str) -> None:
    """Refuse a `path` at which `write_directory` would destroy something else; worth asking before long work.

    Raises
    ------
    FileExistsError
        `path` is neither missing, nor empty, nor a model directory of this kind and nothing more.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     check_replaceable(folder, "recommender")
    """
    target = Path(os.path.realpath(path))
    if target.parent.is_dir():
        with locked(target.parent):  # or another writer's two renames could be in between
            _refuse_others(target, kind)


def take_tensor(
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    file: str,
    name: str,
    shape: tuple[int | None, ...],
    dtype: Any,
    finite: bool = False,
) -> np.ndarray:
    """One tensor of what `read_directory` gave, of the shape and dtype that the caller relies on.

    Parameters
    ----------
    tensors : mapping of file stem to mapping of name to ndarray
    file, name : str
        Stem of the file, and name of the tensor in it.
    shape : tuple of int or None
        None where any length will do.
    dtype : dtype
    finite : bool
        Whether to refuse NaN and infinity.

    Raises
    ------
    ValueError
        It is not there, or not like that.

    Examples
    --------
    >>> take_tensor({"factors": {"items": np.ones((2, 3))}}, "factors", "items", (None, 3), np.float64).shape
    (2, 3)
    """
    array = tensors.get(file, {}).get(name)
    where = f"{file}.safetensors: tensor {name!r}"
    advice = "copy the model again, or fit it anew"
    if array is None:
        raise ValueError(f"{where} is missing: {advice}")
    if array.dtype != np.dtype(dtype):
        raise ValueError(f"{where} is {array.dtype}, expected {np.dtype(dtype)}: {advice}")
    if len(shape) != array.ndim or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape) or "a scalar"
        got = " x ".join(map(str, array.shape)) or "a scalar"
        raise ValueError(f"{where} is {got}, expected {wanted}: {advice}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{where} holds NaN or infinity: {advice}")
    return array


def _refuse_others(target: Path, kind: str) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, expected a directory or nothing: choose another path")
    present = set(os.listdir(target))
    if not present:
        return
    advice = "choose another path, or move it away"
    with ExitStack() as opened:
        try:
            document = _read_config(target, _open_folder(target, opened))
        except (ValueError, FileNotFoundError):
            raise FileExistsError(f"{target} exists and is no model directory we can read: {advice}") from None
    if document["kind"] != kind:
        raise FileExistsError(f"{target} holds a {short(document['kind'])}, not a {kind!r}: {advice}")
    other = min(present - {_CONFIG, *document["files"]}, default=None)
    if other is not None:
        raise FileExistsError(f"{target} also holds {other!r}, which is not the model's: {advice}")


def _save_tensors(file: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write a safetensors file block by block, and give what config.json says about it.

    The library's own writer wants the bytes of all arrays in memory at once. The widest elements come first and the
    data begin at a multiple of 64 bytes, so that every array can be mapped where it lies.
    """
    header: dict[str, Any] = {}
    codes = {dtype: code for code, dtype in _TENSOR_DTYPES.items()}
    order, end = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0
    for name in order:
        array, begin, end = arrays[name], end, end + arrays[name].nbytes
        header[name] = {"dtype": codes[str(array.dtype)], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    total = crc = 0
    with file.open("wb") as out:
        for part in itertools.chain([len(text).to_bytes(8, "little"), text], *(_parts(arrays[n]) for n in order)):
            crc = zlib.crc32(part, crc)
            total += out.write(part)
    return {"bytes": total, "crc32": f"{crc:08x}"}


def _parts(array: np.ndarray) -> Iterator[memoryview]:
    flat = array if array.ndim == 1 else array.reshape(-1)
    cuts = range(0, flat.shape[0], _WRITTEN)
    return (np.ascontiguousarray(flat[at : at + _WRITTEN]).view(np.uint8).data for at in cuts)


# ---- opening and checking --------------------------------------------------------------------------------


def _open_model(path: Path, kind: str, opened: ExitStack) -> tuple[dict[str, Any], dict[str, int]]:
    """Open every file of the model at once, so that one model is read even if it is replaced meanwhile."""
    target = Path(os.path.realpath(path))
    for _ in range(100):  # each further turn takes another writer that finished in between
        for folder in (target, backup_of(target)):
            try:
                folder_fd = _open_folder(folder, opened)
            except FileNotFoundError:
                continue
            try:
                document = _read_config(path, folder_fd)
                if document["kind"] != kind:
                    got = short(document["kind"])
                    raise ValueError(f"{path} holds a {got}, expected a {kind!r}: give the path of a {kind}")
                names = sorted(document["files"])
                return document, {n: opened.enter_context(_plain_file(path, n, folder_fd)) for n in names}
            except FileNotFoundError:
                if _is_at(folder, folder_fd):
                    raise
                break  # it was replaced and deleted while we opened it
    raise FileNotFoundError(f"{path} does not exist: give the path of a {kind} directory")


def _open_folder(folder: Path, opened: ExitStack) -> int:
    try:
        return opened.enter_context(descriptor(folder, os.O_DIRECTORY))
    except NotADirectoryError:
        raise ValueError(f"{folder} is a file, expected a model directory") from None


def _is_at(folder: Path, folder_fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(folder_fd))
    except FileNotFoundError:
        return False


@contextmanager
def _plain_file(folder: Path, name: str, folder_fd: int) -> Iterator[int]:
    try:
        # A link could point anywhere, a pipe would wait for ever.
        if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            raise ValueError(f"{folder / name} is a link or no plain file: copy the model with its files")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_fd)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no {name}: copy the model again") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _read_config(folder: Path, folder_fd: int) -> dict[str, Any]:
    with _plain_file(folder, _CONFIG, folder_fd) as fd, _damage(folder / _CONFIG):
        with open(fd, "rb", closefd=False) as file:
            text = file.read(_CONFIG_BYTES + 1)
        if len(text) > _CONFIG_BYTES:
            raise ValueError(f"it has more than {_CONFIG_BYTES} bytes")
        document = _parse_json(text)
    if not isinstance(document, dict) or type(document.get("format_version")) is not int:
        raise ValueError(f"{folder} is no model directory: its {_CONFIG} states no format_version")
    if document["format_version"] > FORMAT_VERSION:
        raise ValueError(f"{folder} was written by a newer eckart: upgrade eckart to read it")
    with _damage(folder / _CONFIG):
        _check_document(document)
    return document


def _check_document(document: dict[str, Any]) -> None:
    given = document.pop("crc32", None)
    if given != _crc32(_canonical(document)):
        raise ValueError("its checksum is wrong")
    kinds = {"format_version": int, "kind": str, "config": dict, "files": dict}
    if {key: type(value) for key, value in document.items()} != kinds or document["format_version"] < 1:
        raise ValueError(f"it does not state {', '.join(kinds)} as expected")
    if len(document["files"]) > _FILES:
        raise ValueError(f"it lists more than {_FILES} files")
    for name, entry in document["files"].items():
        stem, _, suffix = name.rpartition(".")
        if suffix != "safetensors" or not _STEM.fullmatch(stem):
            raise ValueError(f"it lists a file {short(name)}, which no model has")
        types = {key: type(value) for key, value in entry.items()} if isinstance(entry, dict) else None
        if types != {"bytes": int, "crc32": str}:
            raise ValueError(f"it does not state the bytes and crc32 of {name}")


def _parse_json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{short(text)} is no finite number")
        return value

    return json.loads(text.decode(), object_pairs_hook=unique, parse_float=number, parse_constant=number)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _crc32(data: bytes | int) -> str:
    """CRC-32 of bytes, or of the whole file behind a descriptor: 1.5 GB/s here, where BLAKE2b made 0.35."""
    if isinstance(data, bytes):
        return f"{zlib.crc32(data):08x}"
    crc = offset = 0
    while chunk := os.pread(data, 1 << 20, offset):
        crc = zlib.crc32(chunk, crc)
        offset += len(chunk)
    return f"{crc:08x}"


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turn whatever a parser says about a file into one sentence that names the file."""
    try:
        yield
    except Exception as error:  # no parser lists what it may raise on a hostile file
        said = " ".join(str(error).split())[:200]
        if isinstance(error, RecursionError):
            said = "nested too deeply"
        reason = "".join(c if c.isprintable() else "?" for c in said)  # it may quote the file
        raise ValueError(f"{file} is damaged ({reason}): copy the model again") from None


# ---- what the files hold ---------------------------------------------------------------------------------


def _check_contents(
    document: dict[str, Any], tensors: Mapping[str, Mapping[str, np.ndarray]], ids: Mapping[str, np.ndarray]
) -> None:
    """Refuse before anything is written what could not be read again."""
    try:
        same = _parse_json(_canonical(document)) == document
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"config is no JSON ({error}): give finite numbers and plain values") from None
    if not same:
        raise ValueError("config would change when stored as JSON: give lists for tuples and text for keys")
    if len(json.dumps(document, indent=2)) > _CONFIG_BYTES // 2 or len(tensors) + len(ids) > _FILES:
        raise ValueError(f"more than {_CONFIG_BYTES // 2} bytes of config or {_FILES} files: store tensors")
    for stem in (*tensors, *ids):
        if not _STEM.fullmatch(stem) or stem.endswith(_IDS):
            raise ValueError(
                f"{stem!r} is no file stem: use up to 100 letters, digits, '_', '-' and '.', without .ids at the end"
            )
    for stem, arrays in tensors.items():
        for name, array in arrays.items():
            if str(array.dtype) not in _TENSOR_DTYPES.values() or name == "__metadata__":
                raise ValueError(f"{stem}: no {array.dtype} tensor {name!r} can be stored: convert or rename it")
    for stem, column in ids.items():
        if column.ndim != 1 or column.dtype not in (np.dtype(np.int64), _STRING):
            raise ValueError(f"{stem}: ids are {column.ndim}-D {column.dtype}, expected 1-D int64 or StringDType")


def _read_tensors(fd: int) -> dict[str, np.ndarray]:
    # By descriptor, because the path may by now be another model's; and tensor by tensor, because
    # safetensors.deserialize(bytes) would hold the model twice.
    with safe_open(f"/dev/fd/{fd}", framework="np") as file:
        names = list(file.keys())
        for name in names:
            if (dtype := file.get_slice(name).get_dtype()) not in _TENSOR_DTYPES:
                raise ValueError(f"tensor {short(name)} is {dtype}, expected {', '.join(_TENSOR_DTYPES)}")
        return {name: file.get_tensor(name) for name in names}


def _map_tensors(fd: int) -> dict[str, np.ndarray]:
    with safe_open(f"/dev/fd/{fd}", framework="np") as file:  # checks shapes and offsets
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # it is no dict
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"its header has more than {_HEADER_BYTES} bytes")
    header = _parse_json(os.pread(fd, length, 8))
    pages = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    arrays = {}
    for name, kind in kinds.items():
        if kind not in _TENSOR_DTYPES:
            raise ValueError(f"tensor {short(name)} is {kind}, expected {', '.join(_TENSOR_DTYPES)}")
        dtype, begin = np.dtype(_TENSOR_DTYPES[kind]), 8 + length + header[name]["data_offsets"][0]
        if begin % dtype.itemsize:
            raise ValueError(f"tensor {short(name)} does not lie at its alignment")
        arrays[name] = np.ndarray(tuple(header[name]["shape"]), dtype, pages, begin)
    return arrays


def _pack(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Ids as arrays: integers as they are, strings as their UTF-8 bytes one after the other and where each ends."""
    if ids.dtype != _STRING:
        return {"ids": ids}
    texts = [text.encode() for text in ids.tolist()]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {"ends": ends, "text": np.frombuffer(b"".join(texts), np.uint8)}


def _unpack(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    types = {name: (array.dtype.name, array.ndim) for name, array in arrays.items()}
    if types == {"ids": ("int64", 1)}:
        return arrays["ids"]
    if types != {"ends": ("int64", 1), "text": ("uint8", 1)}:
        raise ValueError("it should hold ids, or ends and text")
    text, ends = arrays["text"].tobytes(), arrays["ends"]
    if not (np.all(np.diff(ends, prepend=0) >= 0) and (ends[-1] if len(ends) else 0) == len(text)):
        raise ValueError("its ends do not cut its text")
    starts = [0, *ends.tolist()]
    return np.array([text[a:b].decode() for a, b in itertools.pairwise(starts)], dtype=_STRING)
