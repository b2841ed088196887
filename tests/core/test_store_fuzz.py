"""Model directories from strangers: whatever is in the files, arrays or one sentence come out."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from eckart.core.store import read_directory, write_directory

STRING = np.dtypes.StringDType()
CASES = 2000
HOSTILE = [0, -1, 1, 1.5, True, None, "", "x", [], {}, [0], {"a": 1}, 2**31, 2**63, 2**64, 10**12, 10**400]
HOSTILE += [
    "../../etc/passwd",
    "/etc/passwd",
    "config.json",
    "u.ids.safetensors",
    "\n",
    "\x1b[2J",
    "a\0b",
    "9" * 5000,
]
HOSTILE += ["\ud800"]


def example(folder):
    """Write a small model; give its files as bytes."""
    tensors = {
        "factors": {"users": np.arange(6.0, dtype=np.float32).reshape(2, 3), "items": np.eye(3)},
        "counts": {"n": np.arange(5), "mask": np.zeros((0, 4), np.uint8)},
    }
    ids = {"users": np.arange(20) * 7, "items": np.array(["", "Heat (1995)", "\U0001f3ac" * 9], dtype=STRING)}
    write_directory(folder, "demo", {"reg": 0.1, "history": [3.5, 2.25]}, tensors, ids)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def sealed(document):
    """Config.json with a checksum that is right, as far as such a thing can be written as JSON."""
    document.pop("crc32", None)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**document, "crc32": f"{zlib.crc32(canonical):08x}"}).encode()


def resealed(files):
    """The files of a hostile author: sizes and checksums agree with the damage where they can."""
    try:
        document = json.loads(files["config.json"])
        for name, entry in document["files"].items():
            if name in files:
                entry.update(bytes=len(files[name]), crc32=f"{zlib.crc32(files[name]):08x}")
        return {**files, "config.json": sealed(document)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return files


def damaged(data, draw):
    """Bytes with a few flips, a cut, a hole, or something pushed in."""
    data = bytearray(data)
    place = draw.randrange(len(data) + 1)
    match draw.randrange(7):
        case 0 | 1 | 2:
            for _ in range(draw.choice([1, 1, 2, 5, 50])):
                data[draw.randrange(len(data))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        case 3:
            del data[place:]
        case 4:
            del data[place : place + draw.randrange(1, 20)]
        case 5:
            data[place:place] = draw.randbytes(draw.randrange(1, 20))
        case 6:
            other = draw.randrange(len(data) + 1)
            data[place:place] = data[other : other + 30]
    return bytes(data)


def twisted(value, draw):
    """A JSON value in which one thing, somewhere, is another."""
    if draw.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return draw.choice(HOSTILE)
    if isinstance(value, list):
        return [twisted(value[0], draw), *value[1:]]
    key = draw.choice(list(value))
    match draw.randrange(4):
        case 0:
            return {k: v for k, v in value.items() if k != key}
        case 1:
            return {**value, str(draw.choice(HOSTILE)): value[key]}
        case _:
            return {**value, key: twisted(value[key], draw)}


def case(files, hostile, draw):
    """One damaged model, by name and bytes."""
    files = dict(files)
    name = draw.choice(list(files))
    kind = draw.randrange(20)
    if kind == 0:
        del files[name]
    elif kind == 1:
        other = draw.choice(list(files))
        files[name], files[other] = files[other], files[name]
    elif kind == 2:
        files[name] = draw.choice([b"", b"\0" * 100, b"{}", b"PAR1", draw.randbytes(100)])
    elif kind < 7:
        document = twisted(json.loads(files["config.json"]), draw)
        files["config.json"] = json.dumps(document).encode()
        if hostile and isinstance(document, dict):  # sealed, but sizes and checksums stay twisted
            files["config.json"] = sealed(document)
        return files
    elif kind < 10 and name.endswith(".safetensors"):
        length = int.from_bytes(files[name][:8], "little")
        header = json.dumps(twisted(json.loads(files[name][8 : 8 + length]), draw)).encode()
        files[name] = len(header).to_bytes(8, "little") + header + files[name][8 + length :]
    else:
        files[name] = damaged(files[name], draw)
    return resealed(files) if hostile else files


def outcome(folder):
    """Read; the sentence, or None where arrays came. Anything else is for the test to show."""
    try:
        config, tensors, ids = read_directory(folder, "demo")
    except (ValueError, FileNotFoundError) as error:
        sentence = str(error)
        if type(error) not in (ValueError, FileNotFoundError) or not sentence.isprintable() or len(sentence) > 500:
            raise AssertionError(f"{error!r} is no sentence") from error
        return sentence
    json.dumps(config, allow_nan=False)
    for named in tensors.values():
        for array in named.values():
            assert array.dtype.kind in "fiu"
            assert array.flags.aligned
            array.tobytes()  # touches every byte
    for column in ids.values():
        assert column.ndim == 1
        assert column.dtype in (np.dtype(np.int64), STRING)
        column.tolist()
    return None


def fuzz(folder, seed, cases, hostile):
    """Read many damaged models; of each, its files and the sentence it was refused with."""
    good = example(folder / "good")
    bad, draw = folder / "bad", random.Random(seed)
    for number in range(cases):
        files = case(good, hostile, draw)
        bad.mkdir()
        for name, data in files.items():
            (bad / name).write_bytes(data)
        began = time.perf_counter()
        try:
            yield files, outcome(bad)
        except BaseException as error:
            raise AssertionError(f"case {number} of seed {seed}, hostile {hostile}: {error!r}") from error
        assert time.perf_counter() - began < 5, number
        shutil.rmtree(bad)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_accident_is_noticed(tmp_path, seed):
    good = example(tmp_path / "good")
    good["config.json"] = json.loads(good["config.json"])
    for files, sentence in fuzz(tmp_path, seed, CASES // 2, hostile=False):
        if sentence is None:  # bytes overwritten by the same, a file that changed places with itself, a space
            assert {**files, "config.json": json.loads(files["config.json"])} == good


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hostile_author_gets_arrays_or_a_sentence(tmp_path, seed):
    sentences = [sentence for _, sentence in fuzz(tmp_path, seed, CASES, hostile=True)]
    assert 100 < sentences.count(None) < CASES // 2  # changed numbers are a valid model
    deeper = [s for s in sentences if s and "checksum" not in s and "config.json" not in s]
    assert len(set(deeper)) > 100


def in_little_memory(*arguments):
    """Run this file in a process of its own, with 3 GiB of address space."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


def test_nothing_ends_the_process():
    assert in_little_memory(7, CASES).split()[-1] == "survived"


# ---- made by hand ----------------------------------------------------------------------------------------


def with_config(folder, change):
    """Write a good model, then a config.json that `change` made of the good one."""
    files = example(folder)
    document = json.loads(files["config.json"])
    change(document)
    (folder / "config.json").write_bytes(sealed(document))
    return folder


def with_file(folder, name, data):
    """Write a good model in which one file is replaced and the sums are right."""
    files = resealed({**example(folder), name: data})
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def table(**arrays):
    return save({name: np.asarray(array) for name, array in arrays.items()})


def text_table(ends, text=b"abcd"):
    return table(ends=np.array(ends, np.int64), text=np.frombuffer(text, np.uint8))


TABLES = {
    "nothing": (b"", "header too small"),
    "no tensors": (table(), "should hold ids, or ends and text"),
    "something else": (table(ids=np.ones(2)), "should hold ids"),
    "two-dimensional": (table(ids=np.ones((2, 2), np.int64)), "should hold ids"),
    "both": (table(ids=np.arange(2), text=np.zeros(2, np.uint8)), "should hold ids"),
    "wide text": (table(ends=np.array([1]), text=np.zeros(1, np.int32)), "should hold ids"),
    "text past the end": (text_table([2, 5]), "do not cut"),
    "text left over": (text_table([2, 3]), "do not cut"),
    "text without ends": (text_table([]), "do not cut"),
    "backwards": (text_table([3, 2, 4]), "do not cut"),
    "before the start": (text_table([-1, 4]), "do not cut"),
    "wraps around": (text_table([2**63 - 1, -(2**63), 4]), "do not cut"),
    "not UTF-8": (text_table([3], b"a\xff\xfe"), "utf-8"),
    "cut inside a character": (text_table([1, 4], "\U0001f3ac".encode()), "utf-8"),
}


@pytest.mark.parametrize("name", TABLES)
def test_hostile_id_tables(tmp_path, name):
    data, sentence = TABLES[name]
    with pytest.raises(ValueError, match=rf"m/users\.ids\.safetensors is damaged \(.*({sentence}).*\): copy the model"):
        read_directory(with_file(tmp_path / "m", "users.ids.safetensors", data), "demo")


def entry(dtype, shape, *offsets):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "absurd shape": safetensors(entry("F32", [2**62, 2**62], 0, 4), b"abcd"),
    "absurd shape of nothing": safetensors(entry("F32", [0, 2**63], 0, 0)),
    "shape that wraps around": safetensors(entry("F32", [2**32, 2**32], 0, 0)),
    "many dimensions": safetensors(entry("F32", [1] * 100, 0, 4), b"abcd"),
    "negative shape": safetensors(entry("F32", [-1], 0, 4), b"abcd"),
    "past the end": safetensors(entry("F32", [2], 0, 8), b"abcd"),
    "backwards": safetensors(entry("F32", [1], 4, 0), b"abcd"),
    "a hole": safetensors(entry("F32", [1], 4, 8), b"abcdefgh"),
    "overlap": safetensors({**entry("F32", [1], 0, 4), "y": entry("F32", [1], 0, 4)["x"]}, b"abcd"),
    "bool": safetensors(entry("BOOL", [4], 0, 4), b"\0\1\2\3"),
    "bfloat16": safetensors(entry("BF16", [2], 0, 4), b"abcd"),
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "header of 2^64 - 1": b"\xff" * 8 + b"{}",
    "nested": safetensors(b'{"x":' * 100_000),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/eckart-pwned'\ntR.",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_tensor_files(tmp_path, name):
    with pytest.raises(ValueError, match=r"m/counts\.safetensors is damaged \(.+\): copy the model again"):
        read_directory(with_file(tmp_path / "m", "counts.safetensors", HEADERS[name]), "demo")


def test_tensors_that_do_not_lie_at_their_alignment_are_mended(tmp_path):
    header = json.dumps(entry("F64", [2], 0, 16)).encode()
    header += b" " * (1 - len(header) % 8)
    data = safetensors(header, np.array([1.0, 2.0]).tobytes())
    _, tensors, _ = read_directory(with_file(tmp_path / "m", "counts.safetensors", data), "demo")
    assert tensors["counts"]["x"].flags.aligned
    assert tensors["counts"]["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "text, sentence",
    [
        (b"", "Expecting value"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b"[" * 1_000_000 + b"]" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
        (b'{"format_version": 1, "format_version": 1}', "a key occurs twice"),
        (b'{"format_version": 1, "kind": "demo", "config": {}, "files": {}}', "its checksum is wrong"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"x": NaN}', "no finite number"),
        (b'{"x": -1e999}', "no finite number"),
        (b'{"x": "\xff"}', "utf-8|UTF-8"),
        (b"\0" * ((16 << 20) + 1), "more than"),
    ],
)
def test_hostile_configs(tmp_path, text, sentence):
    folder = tmp_path / "m"
    example(folder)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"m/config\.json is damaged \(.*({sentence}).*\): copy the model"):
        read_directory(folder, "demo")


@pytest.mark.parametrize("text", [b"[]", b'{"model_type": "llama"}', b'{"format_version": true}'])
def test_another_config_is_no_damage(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="is no model directory: its config"):
        read_directory(tmp_path, "demo")


def test_a_newer_format_is_no_damage(tmp_path):
    folder = with_config(tmp_path / "m", lambda document: document.update(format_version=2, anything="new"))
    with pytest.raises(ValueError, match="was written by a newer eckart: upgrade eckart"):
        read_directory(folder, "demo")


@pytest.mark.parametrize(
    "name",
    [
        "../s.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "config.json",
        ".x.safetensors",
        "x",
        "x\0.safetensors",
        "x.parquet",
    ],
)
def test_files_elsewhere_are_not_read(tmp_path, name):
    (tmp_path / "s.safetensors").write_bytes(table(ids=np.arange(1)))
    folder = with_config(tmp_path / "m", lambda d: d["files"].update({name: d["files"]["users.ids.safetensors"]}))
    with pytest.raises(ValueError, match=r"lists a file .* which no model has"):
        read_directory(folder, "demo")


@pytest.mark.parametrize("name", ["users.ids.safetensors", "counts.safetensors", "config.json"])
def test_links_pipes_and_folders_are_not_read(tmp_path, name):
    folder = tmp_path / "m"
    example(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    for make in (lambda file: file.symlink_to("../elsewhere"), os.mkfifo, os.mkdir):
        make(folder / name)
        with pytest.raises(ValueError, match="is a link or no plain file"):
            read_directory(folder, "demo")
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()


def test_more_files_in_the_directory_are_not_touched(tmp_path):
    example(tmp_path / "m")
    (tmp_path / "m" / "evil.pickle").write_bytes(HEADERS["pickle"])
    assert outcome(tmp_path / "m") is None


def test_bombs_stay_small():
    assert in_little_memory("bombs").split()[-1] == "survived"


def main(what, cases="0"):
    with tempfile.TemporaryDirectory() as folder:
        if what != "bombs":
            assert len(list(fuzz(Path(folder), int(what), int(cases), hostile=True))) == int(cases)
        else:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number, (data, _) in enumerate(TABLES.values()):
                assert outcome(with_file(Path(folder, str(number)), "users.ids.safetensors", data))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 300_000, f"{grown} KB"
    print("survived")


if __name__ == "__main__":
    main(*sys.argv[1:])
