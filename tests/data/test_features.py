import csv
import io
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eckart as ek
from eckart.data import source as source_module
from eckart.data.feature_table import Column, Features
from eckart.data.features import read_features
from eckart.data.vocabulary import Vocabulary

STRING = np.dtypes.StringDType()
KINDS = {"size": "number", "tags": "categories", "plot": "text", "look": "vector", "poster": "image"}
WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="|,\"'"), min_size=1, max_size=4)
NUMBERS = st.floats(-1e6, 1e6, width=32)
few = settings(deadline=None, max_examples=20)
same_folder = settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw, min_size=1):
    """Columns of every kind, half of their values missing, with ids all integers or all text."""
    side = draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), st.integers(0, 20), WORD.map(lambda w: f"é{w}")]))
    ids = draw(st.lists(side, unique=True, min_size=min_size, max_size=8))
    d = draw(st.integers(1, 3))
    tags = st.sets(WORD.map(lambda w: f"t{w}"), min_size=1, max_size=3).map(sorted)
    of = {
        "size": NUMBERS,
        "tags": tags,
        "plot": st.lists(WORD, min_size=1, max_size=3).map(" ".join),
        "look": st.lists(NUMBERS, min_size=d, max_size=d),
        "poster": WORD.map(lambda w: f"{w}.png"),
    }
    return {"item": ids} | {name: [draw(st.none() | values) for _ in ids] for name, values in of.items()}


def arrow(table):
    lists = {"tags": pa.list_(pa.string()), "look": pa.list_(pa.float64()), "size": pa.float64()}
    return pa.table({n: pa.array(v, lists.get(n, pa.string() if n != "item" else None)) for n, v in table.items()})


def read(source, **options):
    return read_features(source, kinds=KINDS, **options)


def equal_columns(a, b):
    if (a.kind, a.names is None) != (b.kind, b.names is None):
        return False
    if a.kind == "categories":
        there = [name for name, n in zip(a.names.tolist(), a.values.sum(axis=0), strict=True) if n]
        other = [name for name, n in zip(b.names.tolist(), b.values.sum(axis=0), strict=True) if n]
        kept = [a.values.toarray()[:, np.isin(a.names, there)], b.values.toarray()[:, np.isin(b.names, other)]]
        return there == other and np.array_equal(*kept)
    if a.values.dtype == STRING:
        return a.values.tolist() == b.values.tolist()
    return np.array_equal(a.values, b.values, equal_nan=True)


def same(a, b):
    columns = [equal_columns(a.columns[n], b.columns[n]) for n in a.columns if n in b.columns]
    return a.ids == b.ids and list(a.columns) == list(b.columns) and all(columns)


# --- what a source is, and that neither its form nor the order of its rows plays a role ---


@same_folder
@given(tables(), st.sampled_from([2, 1 << 18]))
def test_every_form_of_the_same_table_reads_the_same(tmp_path, table, rows):
    whole = arrow(table)
    expected = read(whole)
    text = {n: v for n, v in table.items() if n != "look"}
    text["tags"] = [None if tags is None else "|".join(tags) for tags in table["tags"]]
    out = io.StringIO()
    csv.writer(out).writerows([list(text), *zip(*text.values(), strict=True)])
    (tmp_path / "a.csv").write_text(out.getvalue(), "utf-8")
    pq.write_table(whole, tmp_path / "a.parquet")
    flat = pa.table(text | {"size": pa.array(table["size"], pa.float64())})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "_ROWS", rows)
        assert same(read(tmp_path / "a.parquet"), expected)
        for form in (whole.to_batches()[0], whole.to_pandas(), table, {n: whole[n] for n in whole.column_names}):
            assert same(read(form), expected), form
        for form in (tmp_path / "a.csv", flat, flat.to_pandas()):
            kinds = {n: kind for n, kind in KINDS.items() if n != "look"}
            assert same(read_features(form, kinds=kinds), expected.select([n for n in text if n != "item"])), form


@given(tables(), st.randoms())
@few
def test_the_order_of_rows_changes_nothing_with_kinds_or_without(table, random):
    order = list(range(len(table["item"])))
    random.shuffle(order)
    whole = arrow(table)
    assert same(read(whole.take(order)), read(whole))
    assert same(read_features(whole.take(order)), read_features(whole))


@given(tables(), tables())
@few
def test_aligned_to_more_ids_and_back_is_where_it_began(table, other):
    features = read(arrow(table))
    if isinstance(table["item"][0], type(other["item"][0])):
        more = Vocabulary.of([*table["item"], *other["item"]])
    else:
        more = features.ids
    wide = features.aligned(more)
    assert wide.ids == more
    assert same(wide.aligned(features.ids), features)
    strangers = features.ids.rows(more.ids) < 0
    for column in wide.columns.values():
        assert column.missing()[strangers].all()


@given(tables(min_size=2), st.data())
@few
def test_rows_taken_are_rows_aligned_and_read(table, data):
    whole = arrow(table)
    features = read(whole)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(features), max_size=len(features))))
    mask[0] = True
    taken = features.take(mask)
    assert same(taken, features.take(np.flatnonzero(mask)))
    assert same(taken, features.aligned(features.ids.take(mask)))
    names = set(features.ids.ids[mask].tolist())
    alone = read(whole.filter(pa.array([i in names for i in table["item"]])))
    for name, column in taken.columns.items():
        assert equal_columns(column, alone.columns[name]) or column.missing().all()  # a vector then has no width


@given(tables(), st.integers(1, 5))
@few
def test_encoding_is_the_encoder_row_by_row(table, batch):
    features = read(arrow(table))
    texts, done = [], []

    def encoder(block):
        assert len(block) <= batch
        texts.extend(block)
        return np.array([[len(text), sum(map(ord, text))] for text in block])

    there = ~features.columns["plot"].missing()
    if not there.any():
        with pytest.raises(ValueError, match="'plot' is missing everywhere: there is nothing to encode"):
            features.encoded("plot", encoder)
        return
    encoded = features.encoded("plot", encoder, batch, lambda *step: done.append(step))
    column = encoded.columns["plot"]
    assert column.kind == "vector"
    assert list(encoded.columns) == list(features.columns)
    for text, row in zip(features.columns["plot"].values, column.values, strict=True):
        assert row.tolist() == encoder([text])[0].tolist() if text else np.isnan(row).all()
    assert done[-1] == (len(np.unique(features.columns["plot"].values[there])),) * 2


def test_missing_everywhere_is_no_error():
    nothing = read_features({"item": [2, 1], "x": [None, None], "y": ["", " "], "z": pa.nulls(2)})
    assert all(column.missing().all() for column in nothing.columns.values())
    every = read_features(
        {"item": [2, 1]} | {kind: [None, None] for kind in KINDS.values()}, kinds={k: k for k in KINDS.values()}
    )
    for kind, column in every.columns.items():
        assert column.kind == kind
        assert column.missing().all()
        assert column.take(np.array([0, -1])).missing().all()


def test_no_columns_and_no_rows():
    bare = read_features({"item": [2, 1]})
    assert repr(bare) == "Features(2 rows: no columns)"
    assert len(bare.aligned(Vocabulary([2, 3]))) == 2
    assert len(bare.take([])) == 0
    assert len(read_features({"item": [2, 1], "x": [1, 2], "t": ["a", "b"]}).take([])) == 0


# --- kinds ---


@pytest.mark.parametrize(
    "values, kind",
    [
        ([1, None, 3], "number"),
        ([True, False, None], "number"),
        (pa.array([1, 2, 3], pa.date32()), "number"),
        (["1.5", "", "-3"], "number"),
        (["01234", "12345", "90210"], "categories"),
        (["a|b", "b", None], "categories"),
        (["Science Fiction", "Drama", "Science Fiction"], "categories"),
        (["M", "F", "X"], "categories"),
        ([["a"], [], None], "categories"),
        (pa.array(["x", "y", "x"]).dictionary_encode(), "categories"),
        (["The Big Heat", "Alien", "Paris, Texas"], "text"),
        (["a" * 101, "b", "b"], "text"),
        (["1.png", "b/2.JPG", None], "image"),
        ([[1.5, 2.0], None, [3.0, 4.0]], "vector"),
        (np.array([[1, 2], [3, 4], [5, 6]]), "vector"),
        (pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)), "vector"),
        (sp.csr_array(np.eye(3)), "categories"),
    ],
)
def test_kinds_are_found_out(values, kind):
    assert read_features({"item": [1, 2, 3], "x": values}).columns["x"].kind == kind


def test_kinds_are_chosen():
    table = {"id": [1, 2], "job": [3.0, None], "tags": ["a,b", "b"], "ids": [[7, 7, 8], [8]], "x": [1, 2]}
    features = read_features(
        table, kinds={"job": "categories", "tags": "categories", "ids": "categories", "x": None}, separator=","
    )
    assert repr(features) == "Features(2 rows: job (1 categories), tags (2 categories), ids (2 categories))"
    assert features.columns["job"].names.tolist() == ["3"]
    assert features.columns["ids"].values.toarray().tolist() == [[2, 1], [0, 1]]
    whole = read_features(table | {"tags": ["a|b", "b"]}, kinds={"tags": "categories", "ids": None}, separator=None)
    assert whole.columns["tags"].names.tolist() == ["a|b", "b"]
    assert read_features(table, kinds={"ids": "categories", "tags": "text"}).columns["tags"].values.tolist() == [
        "a,b",
        "b",
    ]


def test_sparse_columns_are_categories_with_weights_whatever_their_order():
    M = np.zeros((2, 12), np.float32)
    M[0, 2], M[0, 10], M[1, 11] = 3, 0.5, 1
    column = read_features({"item": [9, 4], "words": sp.coo_array(M)}).columns["words"]
    assert column.names.tolist() == sorted(map(str, range(12)))
    weights = [{column.names[j]: float(row[j]) for j in np.flatnonzero(row)} for row in column.values.toarray()]
    assert weights == [{"11": 1.0}, {"2": 3.0, "10": 0.5}]


def test_a_file_without_header_has_numbered_columns(tmp_path):
    (tmp_path / "a.dat").write_text("1::Heat (1995)::Crime|Drama\n2::Alien (1979)::Horror\n")
    films = read_features(tmp_path / "a.dat", 0)
    assert repr(films) == "Features(2 rows: 1 (text), 2 (3 categories))"
    assert films.ids.ids.tolist() == [1, 2]
    (tmp_path / "b.csv").write_text(",item,x\n0,7,1\n1,8,2\n")  # pandas' index has no name
    assert list(read_features(tmp_path / "b.csv").columns) == ["x"]


def test_ids_are_read_as_those_of_ratings(tmp_path):
    (tmp_path / "a.csv").write_text("movieId,x\n10,1\n9,2\n")
    (tmp_path / "r.csv").write_text("user,movieId\na,10\na,9\n")
    assert read_features(tmp_path / "a.csv").ids == ek.read(tmp_path / "r.csv").items
    assert read_features(pd.DataFrame({"x": [1, 2]}, index=pd.Index([5, 4], name="user"))).ids.ids.tolist() == [4, 5]


# --- one clear error each ---


@pytest.mark.parametrize(
    "table, options, message",
    [
        ({"x": [1, 2, 3]}, {}, "dict: no column of ids among 'x': say which one it is with id="),
        ({"movie": [1], "song": [2]}, {}, "the column of ids could be 'movie', 'song': say which one with id="),
        ({"item": [1, 2, 1], "x": [1, 2, 3]}, {}, "dict: id 1 stands twice, in row 0 and row 2: keep one row an id"),
        ({"item": ["a", None], "x": [1, 2]}, {}, "dict, row 1: id is missing, expected an id"),
        ({"item": [], "x": []}, {}, "has no rows, only column names"),
        ({"item": [7, 8], "x": [1.0, np.nan]}, {}, "row 1: column 'x' of id 8 is nan, expected a finite number"),
        ({"item": [7, 8], "x": [np.inf, 1.0]}, {}, "column 'x' of id 7 is inf, expected a finite number"),
        ({"item": [7, 8], "x": [1e39, 1.0]}, {}, r"column 'x' of id 7 is 1e\+39, expected a finite number"),
        ({"item": [7], "x": ["five"]}, {"kinds": {"x": "number"}}, "of id 7 is 'five', expected a finite number"),
        ({"item": [7, 8], "x": [["a"], ["b"]]}, {"kinds": {"x": "number"}}, "'x' is list<.*>, expected numbers"),
        ({"item": [7, 8], "v": np.array([[1, 2], [3, np.nan]])}, {}, "'v' of id 8 holds null, NaN or infinity"),
        ({"item": [7, 8], "v": [[1.0, 2.0], [3.0, None]]}, {}, "'v' of id 8 holds null, NaN or infinity"),
        ({"item": [7, 8, 9], "v": [[1.0, 2.0], [3.0], [1.0, 2.0]]}, {}, "'v' of id 8 has 1 numbers, the other rows"),
        ({"item": [7], "v": np.ones((1, 65_537))}, {}, "'v' has 65,537 numbers a row, at most 65,536 can be"),
        ({"item": [7], "v": ["a"]}, {"kinds": {"v": "vector"}}, "'v' is string, expected lists of numbers"),
        ({"item": [7], "v": [[["a"]]]}, {"kinds": {"v": "vector"}}, "'v' holds lists of list.*, expected numbers"),
        ({"item": [7, 8], "v": [[1], [2, 3]]}, {}, "'v' holds lists of integers: say whether its kind is 'vector' or"),
        ({"item": [7], "t": ["x" * 100_001]}, {}, "'t' of id 7 has 100,001 characters, at most 100,000 are"),
        ({"item": [7], "t": ["a\0b"]}, {}, "'t' of id 7 holds a NUL character"),
        ({"item": [7], "t": [["a\0b"]]}, {}, "'t' of id 7 holds a NUL character"),
        ({"item": [7], "t": [["a" * 1001]]}, {}, "'t' of id 7 has a category of 1,001 characters, at most 1,000"),
        ({"item": [7], "t": [0.5]}, {"kinds": {"t": "categories"}}, "'t' holds numbers with a fraction"),
        ({"item": [7], "t": [1]}, {"kinds": {"t": "text"}}, "'t' is int64, expected text for kind 'text'"),
        ({"item": [7], "t": [{"a": 1}]}, {}, "'t' is struct<.*>, which is of no kind: leave it out"),
        ({"item": [7], "s": sp.csr_array([[-1.0]])}, {}, "'s' of id 7 has a weight of -1.0, expected a finite one"),
        ({"item": [7], "s": sp.csr_array([[1.0], [2.0]])}, {}, "'s' has 2 rows, the others have 1"),
        ({"item": [7], "s": sp.csr_array((1, 10**7))}, {}, r"'s' has shape \(1, 10000000\), expected two dimensions"),
        ({"item": [7], "s": sp.csr_array([[1.0]])}, {"kinds": {"s": "text"}}, "'s' is sparse and so of kind"),
        ({"item": [7], "genres": ["a"]}, {"kinds": {"genre": "text"}}, "no column 'genre', .* Did you mean 'genres'?"),
        ({"item": [7], "x": [1]}, {"kinds": {"item": "text"}}, "column 'item' is that of the ids: leave"),
        ({"item": [7], "x": [1]}, {"kinds": {"x": "numbers"}}, "kinds: 'x' is to be 'numbers', expected"),
        ({"item": [7], "x": [1]}, {"separator": ""}, "separator='': expected a character or a few, or None"),
        ({"item": [7], "x": [1]}, {"id": "it"}, "no column 'it', there are 'item', 'x': give id= one of these"),
    ],
)  # fmt: skip
def test_a_table_that_will_not_do_is_one_sentence(table, options, message):
    with pytest.raises(ValueError, match=message) as error:
        read_features(table, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "item,x\n1,2\n2,3\n3,x\n" + "".join(f"{i},5\n" for i in range(4, 14)),
            "a.csv, line 4: column 'x' of id 3 is 'x'",
        ),
        ("item,x\n1,2\n1,3\n", "a.csv: id 1 stands twice, in line 2 and line 3"),
        ("item,x\n1,2\n,3\n", "a.csv, line 3: id is missing"),
        ("item,x\n1,2\n2,3,4\n", "a.csv, line 3: 3 fields, expected 2. Drop or mend that line."),
        ("item,x\n1," + "x" * 1_000_000 + "\n", "column 'x' of id 1 has 1,000,000 characters, at most 100,000"),
        ("item,x\n", "a.csv: has no rows, only column names"),
        ("item,x,x\n1,2,3\n", "several columns are called 'x'"),
        ("item\n1\n", "a.csv: one column only"),
        ("", "a.csv: is empty, expected lines of features"),
        (b"item,x\n1,\xff\n", "a.csv, line 2: is not UTF-8 text"),
    ],
)
def test_a_file_that_will_not_do_is_one_sentence_with_the_line(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_features(file)


def test_a_damaged_parquet_file_and_arrow_memory_are_refused(tmp_path):
    pq.write_table(pa.table({"item": [1, 2], "x": ["a", "b"]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[20:60] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read_features(tmp_path / "a.parquet")
    wrong = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 9, 2], np.int32)), pa.py_buffer(b"ab")]
    )
    with pytest.raises(ValueError, match="is damaged"):
        read_features(pa.table({"item": [1, 2], "x": wrong}))


def test_what_lies_behind_a_null_list_is_nobodys():
    offsets, valid = pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"\x02")
    lists = pa.Array.from_buffers(pa.list_(pa.string()), 2, [valid, offsets], children=[pa.array(["a", "b", "c"])])
    column = read_features(pa.table({"item": [1, 2], "x": lists})).columns["x"]
    assert column.names.tolist() == ["c"]
    assert column.values.toarray().tolist() == [[0], [1]]


def test_other_sources_are_refused():
    with pytest.raises(TypeError, match="cannot read features from int"):
        read_features(3)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file"):
        read_features("nowhere.csv")


def test_misaligned_ids_are_an_error_that_says_why():
    films = read_features({"item": [1, 2], "x": [1, 2]})
    with pytest.raises(ValueError, match=r"features of 2 ids \(1, 2\).*the ids are integers, the others text"):
        films.aligned(Vocabulary(["1", "2"]))
    with pytest.raises(ValueError, match=r"none of which is among 1 ids .* are not of the same things"):
        films.aligned(Vocabulary([7]))
    with pytest.raises(ValueError, match="no column 'y', there are 'x'"):
        films.select(["y"])
    with pytest.raises(ValueError, match=r"no column 'genre'.* Did you mean 'genres'?"):
        read_features({"item": [1], "genres": ["a"]}).select("genre")


@pytest.mark.parametrize("rows", [[-1], [2], [0.0], [[0]], [True], [True] * 3, ["a"], [1, 0], [0, 0]])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(ValueError, match=r"rows are no mask of 2|ids must be unique and ascending"):
        read_features({"item": [1, 2], "x": [1, 2]}).take(rows)


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda texts: np.ones((len(texts) + 1, 2)), r"gave shape \(3, 2\) for 2 texts, expected \(2, d\)"),
        (lambda texts: np.ones(len(texts)), r"gave shape \(2,\) for 2 texts"),
        (lambda texts: np.ones((len(texts), 0)), r"gave shape \(2, 0\) for 2 texts"),
        (
            lambda texts: np.ones((len(texts), len(texts))),
            "gave vectors of 1 numbers after some of 2: expected one width",
        ),
        (lambda texts: np.full((len(texts), 2), np.nan), "gave NaN or infinity"),
        (lambda texts: np.full((len(texts), 2), 1e39), "gave NaN or infinity"),
        (lambda texts: np.full((len(texts), 2), "a"), "gave an array of <U1, expected numbers"),
        (lambda texts: [[1.0], [1.0, 2.0]], "the encoder gave no array"),
        (lambda texts: None, "gave an array of object"),
    ],
)
def test_an_encoder_that_answers_wrongly_is_one_error(answer, message):
    films = read_features({"item": [1, 2, 3], "plot": ["a b", "c d", "e f"]}, kinds={"plot": "text"})
    with pytest.raises(ValueError, match=f"column 'plot': .*{message}"):
        films.encoded("plot", answer, batch=2)


def test_only_text_and_images_are_encoded():
    films = read_features({"item": [1], "x": [1]})
    with pytest.raises(ValueError, match="column 'x' is of kind 'number': only text and images are encoded"):
        films.encoded("x", np.ones)
    with pytest.raises(ValueError, match="batch=0"):
        read_features({"item": [1], "x": ["a b"]}).encoded("x", np.ones, batch=0)


@pytest.mark.parametrize(
    "column, message",
    [
        (Column("sound", np.ones(2, np.float32)), "is of kind 'sound', expected one of number"),
        (Column("number", np.ones(2)), "is 1-D float64, expected a 1-D array of float32"),
        (Column("number", np.ones(3, np.float32)), "has 3 rows, expected 2"),
        (Column("number", np.full(2, np.inf, np.float32)), "holds infinity"),
        (Column("number", np.ones(2, np.float32), np.array(["a"], STRING)), "has names, which only categories have"),
        (Column("vector", np.array([[np.nan, 1], [1, 1]], np.float32)), "holds a row with NaN or infinity"),
        (Column("vector", np.ones((2, 70_000), np.float32)), "at most 65,536"),
        (Column("text", ["a", "b"]), "is list, expected a 1-D array"),
        (Column("categories", np.ones((2, 1), np.float32), np.array(["a"], STRING)), "is no csr_array of float32"),
        (Column("categories", sp.csr_array(np.ones((2, 1), np.float32))), "has no 1-D array of StringDType as names"),
        (Column("categories", sp.csr_array(np.ones((2, 1), np.float32)), np.array(["a", "b"], STRING)), "is 2 x 1"),
        (Column("categories", sp.csr_array(-np.ones((2, 1), np.float32)), np.array(["a"], STRING)), "weight of -1.0"),
        (Column("categories", sp.csr_array(np.ones((2, 2), np.float32)), np.array(["b", "a"], STRING)), "not unique"),
    ],
)  # fmt: skip
def test_a_column_made_by_hand_is_checked(column, message):
    with pytest.raises(ValueError, match=re.escape("column 'x' ") + f".*{message}"):
        Features(Vocabulary([1, 2]), {"x": column})
