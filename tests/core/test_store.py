"""Model directories come back as they were written, and survive whatever interrupts their replacement."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from eckart.core.store import check_replaceable, read_directory, take_tensor, write_directory

STRING = np.dtypes.StringDType()
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
stems = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(lambda s: not s.endswith(".ids"))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)  # UTF-8 has no half surrogates
columns = hnp.arrays(np.int64, st.integers(0, 5)) | st.lists(names, max_size=5).map(
    lambda ids: np.array(ids, dtype=STRING)
)
models = st.tuples(
    st.dictionaries(st.text(), json_values, max_size=4),
    st.dictionaries(stems, st.dictionaries(names, arrays, max_size=3), max_size=2),
    st.dictionaries(stems, columns, max_size=2),
)
quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tolist() == expected.tolist() if got.dtype == STRING else got.tobytes() == expected.tobytes()


@quick
@given(models)
def test_what_is_read_is_what_was_written(tmp_path_factory, model):
    config, tensors, ids = model
    path = tmp_path_factory.mktemp("m")
    write_directory(path / "a", "demo", config, tensors, ids)
    config2, tensors2, ids2 = read_directory(path / "a", "demo")
    assert json.dumps(config2, sort_keys=True) == json.dumps(config, sort_keys=True)
    assert {s: set(t) for s, t in tensors2.items()} == {s: set(t) for s, t in tensors.items()}
    for stem, named in tensors.items():
        for name, array in named.items():
            assert_same(tensors2[stem][name], array)
            assert tensors2[stem][name].flags.writeable
    assert set(ids2) == set(ids)
    for stem, column in ids.items():
        assert_same(ids2[stem], column)
    write_directory(path / "b", "demo", config2, tensors2, ids2)
    assert contents(path / "b") == contents(path / "a")


def test_the_order_of_arguments_and_the_layout_of_arrays_change_no_byte(tmp_path):
    a, b = np.arange(6.0).reshape(2, 3), np.ones(2, np.float32)
    ids = {"u": np.arange(3), "i": np.array(["x"], dtype=STRING)}
    write_directory(tmp_path / "a", "demo", {"p": 1, "q": [2.5]}, {"t": {"a": a, "b": b}}, ids)
    turned = {"t": {"b": b, "a": np.asfortranarray(a)}}
    strided = {"i": ids["i"], "u": np.arange(6)[:3]}
    write_directory(tmp_path / "b", "demo", {"q": [2.5], "p": 1}, turned, strided)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_unusual_ids_survive(tmp_path):
    ids = ["", "\0", "a\0", "a\0b", "e\u0301", "\U0001f3ac", "'\"\n", "x" * 1_000_000]
    many = np.arange(70_000) * 3  # more than a batch
    text = np.array([f"user {i}" for i in many], dtype=STRING)
    column = np.array(ids, dtype=STRING)
    write_directory(tmp_path / "m", "demo", {}, {}, {"odd": column, "many": many, "text": text})
    _, _, back = read_directory(tmp_path / "m", "demo")
    assert back["odd"].tolist() == ids
    assert back["many"].tolist() == many.tolist()
    assert back["text"].tolist() == text.tolist()


def test_other_programs_can_read_the_files(tmp_path):
    write_directory(tmp_path / "m", "demo", {}, {"t": {"x": np.eye(2)}}, {"u": np.array(["a"], dtype=STRING)})
    assert load_file(tmp_path / "m" / "t.safetensors")["x"].tolist() == [[1, 0], [0, 1]]
    assert load_file(tmp_path / "m" / "u.ids.safetensors")["text"].tobytes() == b"a"
    assert json.loads((tmp_path / "m" / "config.json").read_text())["format_version"] == 1


# ---- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"x": float("nan")},
        {"x": [float("inf")]},
        {"x": (1, 2)},
        {1: 2},
        {"x": np.float32(1)},
        {"x": b""},
        {"x": "y" * (9 << 20)},
    ],
)
def test_what_json_cannot_hold_is_refused(tmp_path, config):
    with pytest.raises(ValueError, match="config"):
        write_directory(tmp_path / "m", "demo", config, {}, {})
    assert not list(tmp_path.iterdir())


def test_a_config_nested_too_deeply_is_refused(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="config"):
        write_directory(tmp_path / "m", "demo", {"x": deep}, {}, {})


@pytest.mark.parametrize("stem", ["", "../x", "a/b", ".hidden", "a b", "x\n", "x" * 101])
def test_file_stems_stay_in_the_directory(tmp_path, stem):
    for tensors, ids in [({stem: {}}, {}), ({}, {stem: np.arange(2)})]:
        with pytest.raises(ValueError, match="no file stem"):
            write_directory(tmp_path / "m", "demo", {}, tensors, ids)


@pytest.mark.parametrize("dtype", ["bool", "complex64", ">f4", "U3", "O", "M8[s]"])
def test_tensors_of_other_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="can be stored"):
        write_directory(tmp_path / "m", "demo", {}, {"t": {"x": np.zeros(2, dtype)}}, {})


@pytest.mark.parametrize("ids", [np.zeros(2), np.arange(2, dtype="i4"), np.array(["a"]), np.eye(2, dtype=int)])
def test_ids_of_other_dtypes_are_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="expected 1-D int64 or StringDType"):
        write_directory(tmp_path / "m", "demo", {}, {}, {"u": ids})


def write(path, version, size=5):
    """Write a model of which every file says its version."""
    tensors = {"t": {"x": np.full(size, version)}}
    ids = {"u": np.full(3, version), "i": np.array([str(version)] * 2, dtype=STRING)}
    write_directory(path, "demo", {"version": version}, tensors, ids)


def version_of(path):
    """Version of the model at `path`, which must be the same in every file."""
    config, tensors, ids = read_directory(path, "demo")
    said = {config["version"], *tensors["t"]["x"].tolist(), *ids["u"].tolist(), *map(int, ids["i"].tolist())}
    assert len(said) == 1, said
    return said.pop()


def test_only_a_model_of_the_same_kind_is_replaced(tmp_path):
    def refused(path, sentence):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileExistsError, match=sentence):
            check_replaceable(path, "demo")
        with pytest.raises(FileExistsError, match=sentence):
            write(path, 9)
        assert sorted(tmp_path.rglob("*")) == before

    (tmp_path / "file").write_text("precious")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    refused(tmp_path / "thesis", "is no model directory")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path / "hf", "is no model directory")
    write_directory(tmp_path / "other", "checkpoint", {}, {}, {})
    refused(tmp_path / "other", "holds a 'checkpoint', not a 'demo'")
    write(tmp_path / "model", 1)
    (tmp_path / "model" / "notes.md").write_text("precious")
    refused(tmp_path / "model", "also holds 'notes.md'")

    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new" / "deep" / "m"):
        write(path, 1)
        write(path, 2)
        assert version_of(path) == 2
    assert not list(tmp_path.rglob(".*"))


def test_a_link_to_a_model_is_followed(tmp_path):
    write(tmp_path / "v1", 1)
    (tmp_path / "latest").symlink_to("v1")
    write(tmp_path / "latest", 2)
    assert (tmp_path / "latest").is_symlink()
    assert version_of(tmp_path / "v1") == version_of(tmp_path / "latest") == 2


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give the path of a demo"):
        read_directory(tmp_path / "none", "demo")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        read_directory(tmp_path, "demo")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, expected a model directory"):
        read_directory(tmp_path / "file", "demo")
    write(tmp_path / "m", 1)
    with pytest.raises(ValueError, match="holds a 'demo', expected a 'recommender'"):
        read_directory(tmp_path / "m", "recommender")
    (tmp_path / "m" / "u.ids.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"m holds no u\.ids\.safetensors: copy the model again"):
        read_directory(tmp_path / "m", "demo")


def test_take_tensor_says_what_differs():
    tensors = {"f": {"x": np.array([[1.0, np.nan]]), "s": np.array(2)}}
    assert take_tensor(tensors, "f", "x", (None, 2), np.float64) is tensors["f"]["x"]
    assert take_tensor(tensors, "f", "s", (), "i8") == 2
    for arguments, sentence in [
        (("g", "x", (1, 2), "f8"), r"g\.safetensors: tensor 'x' is missing"),
        (("f", "y", (1, 2), "f8"), r"f\.safetensors: tensor 'y' is missing"),
        (("f", "x", (1, 2), "f4"), "is float64, expected float32"),
        (("f", "x", (None, 3), "f8"), "is 1 x 2, expected any x 3"),
        (("f", "x", (2,), "f8"), "is 1 x 2, expected 2"),
        (("f", "s", (2,), "i8"), "is a scalar, expected 2"),
        (("f", "x", (1, 2), "f8", True), "holds NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            take_tensor(tensors, *arguments)


# ---- replacing while others read, write and die ----------------------------------------------------------


def test_a_reader_beside_a_writer_always_sees_one_complete_model(tmp_path):
    path, done, seen = tmp_path / "m", threading.Event(), []
    write(path, 0)

    def replace():
        for version in range(1, 100):
            write(path, version)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        seen.append(version_of(path))
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert version_of(path) == 99


def test_two_writers_of_one_target_take_turns(tmp_path):
    failed = []

    def replace(versions):
        try:
            for version in versions:
                write(tmp_path / "m", version)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=replace, args=(range(a, a + 50),)) for a in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert version_of(tmp_path / "m") in (49, 149)
    assert os.listdir(tmp_path) == ["m"]


def test_a_failed_write_leaves_the_old_model_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "m", 1)

    def full(*_):
        raise OSError("disk full")

    for step in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="disk full"):
                write(tmp_path / "m", 2)
        assert version_of(tmp_path / "m") == 1
        assert os.listdir(tmp_path) == ["m"]


def in_a_process_that_forks(code, *arguments):
    """Run `code` with this module imported as `t`: forking is cheap there, and no thread is cut in half."""
    here = str(Path(__file__).parent)
    program = ["-c", f"import sys; sys.path.insert(0, {here!r}); import test_store as t\n{code}"]
    done = subprocess.run([sys.executable, *program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_death_before_and_after_every_step_of_a_replacement_loses_nothing(tmp_path):
    code = """
import os, shutil
path, version = t.Path(sys.argv[1]), 0
t.write(path, version)
for moment in ("before", "after"):
    for step in range(1000):
        pid = os.fork()
        if not pid:
            count = 0
            def dying(call):
                def wrapped(*args, **kwargs):
                    global count
                    count += 1
                    if count == step + 1 and moment == "before": os._exit(9)
                    mine = count
                    try:
                        return call(*args, **kwargs)
                    finally:
                        if mine == step + 1 and moment == "after": os._exit(9)
                return wrapped
            for name in ("rename", "fsync", "mkdir", "unlink", "rmdir", "close"):
                setattr(os, name, dying(getattr(os, name)))
            t.write(path, version + 1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = t.version_of(path)
        assert found in (version, version + 1), (moment, step, found, version)
        backup = path.with_name(".m.eckart-old")
        assert not backup.exists() or t.version_of(backup) == version  # never half of it
        assert code in (0, 9), code
        version = found
        if not code:
            break
    print(step)
t.write(path, version + 1)
assert t.version_of(path) == version + 1
assert os.listdir(path.parent) == [path.name], os.listdir(path.parent)
"""
    steps = in_a_process_that_forks(code, tmp_path / "m").split()
    assert min(map(int, steps)) > 20


def test_kill_9_at_random_moments_never_loses_the_last_complete_model(tmp_path):
    code = """
import os, random, signal, time
path, complete, killed = t.Path(sys.argv[1]), 0, 0
began = time.perf_counter()
for _ in range(5):
    t.write(path, complete, size=20_000)
a_write = (time.perf_counter() - began) / 5
draw = random.Random(0)
for _ in range(60):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        for version in range(complete + 1, complete + 10_000):
            t.write(path, version, size=20_000)
            os.write(writing, version.to_bytes(8, "little"))
        os._exit(0)
    os.close(writing)
    time.sleep(draw.uniform(0, 2.5) * a_write)
    os.kill(pid, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    reported = b"".join(iter(lambda: os.read(reading, 1 << 16), b""))
    os.close(reading)
    complete = int.from_bytes(reported[-8:], "little") if reported else complete
    found = t.version_of(path)
    assert found in (complete, complete + 1), (found, complete)
    complete = found
t.write(path, complete + 1)
assert os.listdir(path.parent) == [path.name], os.listdir(path.parent)
print(killed, complete)
"""
    killed, complete = map(int, in_a_process_that_forks(code, tmp_path / "m").split())
    assert killed == 60
    assert complete > 10


def test_everyone_whom_the_umask_lets_may_read_every_file(tmp_path):
    old = os.umask(0o022)
    try:
        write_directory(tmp_path / "m", "demo", {}, {"t": {"x": np.eye(2)}}, {"u": np.arange(3)})
    finally:
        os.umask(old)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "m").iterdir()} == {0o644}
