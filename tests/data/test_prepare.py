"""Prepared ratings are the ratings, from every source, in little memory; what was interrupted leaves nothing."""

import mmap
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from core.test_store_fuzz import case, resealed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import eckart as ek
from eckart.core import csr as csr_module
from eckart.core.store import write_directory
from eckart.data import prepare as prepare_module
from eckart.data import source as source_module


def same(one, other):
    for a, b in ((one.matrix, other.matrix), (one.by_item(), other.by_item())):
        assert a.shape == b.shape
        for name in ("indptr", "indices", "data"):
            assert getattr(a, name).dtype == getattr(b, name).dtype
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert (one.users, one.items, one.rated) == (other.users, other.items, other.rated)
    assert (one.times is None) == (other.times is None)
    assert one.times is None or one.times.tobytes() == other.times.tobytes()


@pytest.fixture
def tiny(monkeypatch):
    """Many batches, blocks and buckets even of a few entries."""
    monkeypatch.setattr(prepare_module, "_BLOCK", 16)
    monkeypatch.setattr(csr_module, "_BLOCK", 16)
    monkeypatch.setattr(source_module, "_ROWS", 9)


@st.composite
def tables(draw):
    """Raw columns with repeats: ids of either kind, ratings or none, times or none or some."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = [rng.integers(0, draw(st.sampled_from([1, 3, 12])), n) * 7 - 5 for _ in range(2)]
    table = {
        name: [f"é{x}" for x in c.tolist()] if draw(st.booleans()) else c
        for name, c in zip(("user", "item"), ids, strict=True)
    }
    if draw(st.booleans()):
        table["rating"] = rng.uniform(-5, 5, n).astype(np.float32)
    times = draw(st.sampled_from(["none", "all", "some"]))
    if times != "none":
        known = rng.integers(0, 5, n)
        table["timestamp"] = pa.array([None if times == "some" and x == 0 else x for x in known.tolist()], pa.int64())
    return table


@settings(max_examples=80, deadline=None)
@given(
    table=tables(), policy=st.sampled_from(["last", "mean", "sum", "error"]), block=st.sampled_from([1, 2, 16, 1000])
)
def test_what_is_prepared_is_what_is_read(table, policy, block, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_BLOCK", block)
        patch.setattr(csr_module, "_BLOCK", block)
        patch.setattr(source_module, "_ROWS", 7)
        data, complaint = answer(ek.read, table, duplicates=policy)
        _, mine = answer(ek.prepare, table, folder / "store", duplicates=policy)
        assert mine == complaint
        assert [file.name for file in folder.iterdir()] == ["store"] * (not complaint)
        if data is not None:
            same(ek.read(folder / "store"), data)


def answer(function, *arguments, **options):
    """What it returns, and the sentence it refuses with."""
    try:
        return function(*arguments, **options), ""
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        return None, str(error)


LINES = [f"{u},{i},{(u * i) % 9 / 2},{(u + i) % 7}" for u in range(12) for i in range(u % 3, 20, 2)] + ["3,3,1,99"]


def sources(folder):
    text = "\n".join(LINES) + "\n"
    (folder / "named.csv").write_text("userId,movieId,rating,timestamp\n" + text)
    (folder / "plain.csv").write_text(text)
    (folder / "movielens.dat").write_text(text.replace(",", "::"))
    (folder / "tabs.tsv").write_text(text.replace(",", "\t"))
    (folder / "words.csv").write_text(
        "user,item,rating\n" + "\n".join("u" + line[: line.rindex(",")] for line in LINES)
    )
    (folder / "pairs.csv").write_text("user,item\n" + "\n".join(",".join(line.split(",")[:2]) for line in LINES))
    frame = pd.read_csv(folder / "named.csv")
    pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet", row_group_size=11)
    yield from sorted(folder.iterdir())
    yield from (frame, pa.Table.from_pandas(frame), {name: frame[name].to_numpy() for name in frame}, ek.read(frame))


@pytest.mark.usefixtures("tiny")
def test_every_source_that_can_be_read_can_be_prepared(tmp_path):
    (tmp_path / "in").mkdir()
    for number, source in enumerate(sources(tmp_path / "in")):
        ek.prepare(source, tmp_path / f"{number}")
        same(ek.read(tmp_path / f"{number}"), ek.read(source))
    assert number == 10


@pytest.mark.usefixtures("tiny")
def test_options_and_complaints_are_those_of_reading(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a,b,c\n" + "\n".join(f"{i % 5},{i},3" for i in range(60)) + "\n7,x,five\n8,9,4\n")
    options = {"user": "a", "item": 1, "rating": "c", "bad_lines": "skip"}
    with pytest.warns(UserWarning, match="1 line left out"):
        ek.prepare(file, tmp_path / "store", **options)
    with warnings.catch_warnings(action="ignore"):
        same(ek.read(tmp_path / "store"), ek.read(file, **options))
    with pytest.raises(ValueError, match=r"a\.csv, line 62: rating is 'five'"):
        ek.prepare(file, tmp_path / "other", **options | {"bad_lines": "error"})
    with pytest.raises(ValueError, match="is prepared already: give the options of reading to prepare"):
        ek.read(tmp_path / "store", duplicates="mean")
    with pytest.raises(ValueError, match="is a directory, expected a file"):
        ek.prepare(tmp_path / "store", tmp_path / "other")
    with pytest.raises(FileExistsError, match="exists and is no model directory"):
        ek.prepare(file, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "store"]


STAGES = ["reading", "sorting by user", "sorting by item", "writing"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_what_was_there(stage, tmp_path):
    ek.prepare({"user": [1], "item": [2]}, tmp_path / "store")

    def stop(at, done, total):
        if at == stage and (done or at == "writing"):
            raise KeyboardInterrupt

    data = ek.synthetic(30, 20, 300, seed=0)
    with pytest.raises(KeyboardInterrupt):
        ek.prepare(data, tmp_path / "store", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert ek.read(tmp_path / "store").nnz == 1
    ek.prepare(data, tmp_path / "store")
    same(ek.read(tmp_path / "store"), data)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_leaves_nothing(stage, tmp_path):
    code = f"""if True:
        import os, signal, sys, eckart as ek
        def kill(at, done, total):
            if at == {stage!r}:
                os.kill(os.getpid(), signal.SIGKILL)
        ek.prepare(ek.synthetic(30, 20, 300), sys.argv[1], progress=kill)"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_fit_takes_no_memory_that_grows_with_the_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(csr_module, "_BLOCK", 1000)
    ek.prepare(ek.synthetic(1500, 600, 400_000, seed=0), tmp_path / "store")
    data = ek.read(tmp_path / "store")
    for solver in (ek.ALS(rank=2, epochs=1), ek.ImplicitALS(rank=2, epochs=1)):
        tracemalloc.start()
        solver.fit(data, checkpoint=tmp_path / type(solver).__name__).recommend([1, 2])
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert highest < data.nnz, "bytes: not even a mask of the entries was made"
    assert not data.matrix.data.flags.writeable
    assert isinstance(data.matrix.indices.base, mmap.mmap)


# ---- from strangers --------------------------------------------------------------------------------------


def store_files(folder, **changes):
    """Write a store of 4 entries with some arrays replaced (or left out: None), its sums right."""
    data = ek.read({"user": [1, 1, 2, 5], "item": [7, 8, 8, 9], "rating": [1, 2, 3, 4], "timestamp": [4, 3, 2, 1]})
    parts = {"by_user": data.matrix, "by_item": data.by_item()}
    tensors = {
        name: {"indptr": m.indptr.astype(np.int64), "indices": m.indices, "values": m.data} for name, m in parts.items()
    }
    tensors["by_user"]["times"] = data.times
    ids = {"users": data.users.ids, "items": data.items.ids}
    config = {"rated": True}
    for key, value in changes.items():
        place, _, name = key.partition("__")
        where = {"config": config, "ids": ids}.get(place, tensors.get(place))
        if name:
            where[name] = value
            if value is None:
                del where[name]
        else:
            tensors.pop(place)
    write_directory(folder, "ratings", config, tensors, ids)
    return folder


def i32(*x):
    return np.array(x, np.int32)


def i64(*x):
    return np.array(x, np.int64)


def f32(*x):
    return np.array(x, np.float32)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"by_user__indices": i32(0, 1, 1, 3)}, "outside 0 to 2"),
        ({"by_user__indices": i32(0, 1, 1, -1)}, "outside 0 to 2"),
        ({"by_user__indices": i32(1, 0, 1, 2)}, "do not ascend"),
        ({"by_item__indices": i32(0, 0, 1, 3)}, "by item, a column is outside 0 to 2"),
        ({"by_item__indices": i32(0, 1, 0, 2)}, "by item, the columns of a row do not ascend"),
        ({"by_user__indptr": i64(0, 2, 3, 5)}, "do not cut"),
        ({"by_user__indptr": i64(0, 2**33, 3, 4)}, "do not cut"),
        ({"by_user__indptr": i64(0, 2, 3, 2**32 + 4)}, "do not cut"),
        ({"by_user__indptr": i64(0, 2**32 + 2, 3, 4)}, "do not cut"),
        ({"by_item__indptr": i64(0, -1, 3, 4)}, "do not cut"),
        ({"by_item__indptr": i64(1, 1, 3, 4)}, "do not cut"),
        ({"by_user__indptr": i64(0, 2, 4)}, "expected 4"),
        ({"by_user__indptr": i32(0, 2, 3, 4)}, "is int32, expected int64"),
        ({"by_user__indices": i64(0, 1, 1, 2)}, "is int64, expected int32"),
        ({"by_user__values": f32(1, np.nan, 3, 4)}, "NaN"),
        ({"by_item__values": f32(1, np.inf, 3, 4)}, "by item, a value is NaN or infinity"),
        ({"by_user__values": f32(1, 2, 3)}, "expected 4"),
        ({"by_user__times": i64(1, 2, 3)}, "expected 4"),
        ({"by_user__times": f32(1, 2, 3, 4)}, "expected int64"),
        ({"by_item__indptr": i64(0, 0, 0, 0), "by_item__indices": i32(), "by_item__values": f32()}, "0 by item"),
        ({"by_item": None}, "is missing"),
        ({"by_user__values": None}, "is missing"),
        ({"ids__users": i64(1, 1, 5)}, "unique and ascending"),
        ({"ids__users": i64(1, 2)}, "expected 3"),
        ({"ids__items": None}, "items"),
        ({"config__rated": 1}, "rated is 1"),
        ({"config__rated": None}, "rated"),
    ],
)
def test_a_hostile_store_is_one_sentence(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=rf"store: is damaged \(.*{sentence}.*\): prepare it again"):
        ek.read(store_files(tmp_path / "store", **change))


def test_a_model_is_no_store(tmp_path):
    write_directory(tmp_path / "m", "recommender", {}, {}, {})
    with pytest.raises(ValueError, match="holds a 'recommender', expected a 'ratings'"):
        ek.read(tmp_path / "m")


def test_arrays_that_do_not_lie_at_their_alignment_are_not_mapped(tmp_path):
    store_files(tmp_path / "store")
    files = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    data = save({"indptr": i64(0, 1, 3, 4), "indices": i32(0, 0, 1, 2), "values": f32(1, 2, 3, 4)})
    length = int.from_bytes(data[:8], "little")
    files["by_item.safetensors"] = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    for name, content in resealed(files).items():
        (tmp_path / "store" / name).write_bytes(content)
    with pytest.raises(ValueError, match="does not lie at its alignment"):
        ek.read(tmp_path / "store")


@pytest.mark.parametrize("hostile", [False, True])
def test_whatever_is_in_the_files_ratings_or_one_sentence_come_out(hostile, tmp_path):
    good = {path.name: path.read_bytes() for path in store_files(tmp_path / "good").iterdir()}
    sentences, read, draw = set(), 0, random.Random(hostile)
    for _ in range(500):
        (tmp_path / "bad").mkdir()
        for name, content in case(good, hostile, draw).items():
            (tmp_path / "bad" / name).write_bytes(content)
        data, complaint = answer(ek.read, tmp_path / "bad")
        if data is not None:
            read += 1
            answer(ek.ALS(rank=1, epochs=1).fit, data)
            data.to_arrow()
        assert complaint.isprintable()
        assert len(complaint) < 500
        sentences.add(complaint)
        shutil.rmtree(tmp_path / "bad")
    assert len(sentences) > 20
    assert read > (20 if hostile else 0)
