import csv
import datetime
import gzip
import io
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eckart.data import source as source_module
from eckart.data import text as text_module
from eckart.data.read import read
from eckart.data.synthetic import synthetic

NAMES = ["user", "item", "rating", "timestamp"]
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=":"), min_size=1, max_size=4)
IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), WORDS.map(lambda word: f"é{word}")
STARS = st.floats(-5, 5, width=32) | st.sampled_from([0.0, 3e38, 1e-40])
same_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def ratings(draw, unique=True, min_size=1):
    """Columns of up to 20 ratings, ids all integers or all text."""
    sides = [draw(st.sampled_from(IDS)) for _ in range(2)]
    if not unique:  # of two ids a side, so that pairs do repeat
        sides = [st.sampled_from(draw(st.lists(side, min_size=1, max_size=2))) for side in sides]
    pairs = draw(st.lists(st.tuples(*sides), unique=unique, min_size=min_size, max_size=20))
    n = len(pairs)
    return {
        "user": [user for user, _ in pairs],
        "item": [item for _, item in pairs],
        "rating": draw(st.lists(STARS, min_size=n, max_size=n)),
        "timestamp": draw(st.lists(st.integers(-(2**62), 2**62), min_size=n, max_size=n)),
    }


def same(a, b):
    return a.to_arrow().equals(b.to_arrow()) and a.users == b.users and a.items == b.items and a.rated == b.rated


def delimited(table, delimiter=",", header=True, end="\n"):
    """The table as text; '::' files quote nothing."""
    rows = ([list(table)] if header else []) + [list(row) for row in zip(*table.values(), strict=True)]
    if len(delimiter) > 1:
        return "".join(delimiter.join(map(str, row)) + end for row in rows)
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    return out.getvalue()


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- what a source is, and that its form plays no role ---


@same_folder
@given(ratings(), st.sampled_from(["\n", "\r\n"]))
def test_every_form_of_the_same_data_reads_the_same(tmp_path, table, end):
    arrow = pa.table(table)
    data = read(table)
    bom = b"\xef\xbb\xbf"
    pq.write_table(arrow, tmp_path / "a.parquet")
    pq.write_table(arrow, tmp_path / "no-suffix")
    forms = [
        put(tmp_path / "a.csv", delimited(table, end=end)),
        put(tmp_path / "a.tsv", delimited(table, "\t", end=end)),
        put(tmp_path / "a.dat", delimited(table, "::", end=end)),
        put(tmp_path / "b.dat", delimited(table, "::", header=False, end=end)),
        put(tmp_path / "bom.csv", bom + delimited(table, end=end).encode()),
        put(tmp_path / "semicolon.csv", delimited(table, ";", end=end).rstrip()),
        put(tmp_path / "a.csv.gz", gzip.compress(delimited(table, end=end).encode())),
        put(tmp_path / "blank.csv", "\n\n" + delimited(table, end=end).replace(end, end * 2)),
        str(tmp_path / "a.parquet"),
        tmp_path / "no-suffix",
        arrow,
        arrow.to_batches()[0],
        pd.DataFrame(table),
        {name: np.array(column) for name, column in table.items()},
        {name: pd.Series(column) for name, column in table.items()},
        {name: arrow[name].combine_chunks() for name in arrow.column_names},
        arrow.set_column(0, "user", arrow["user"].dictionary_encode()),
        data,
    ]
    for form in forms:
        assert same(read(form), data), form
    assert data.to_arrow().num_rows == len(table["user"])


@same_folder
@given(ratings(), st.randoms(), st.sampled_from([64, 1 << 20]))
def test_the_order_of_rows_changes_nothing(tmp_path, table, random, block):
    order = list(range(len(table["user"])))
    random.shuffle(order)
    shuffled = {name: [column[i] for i in order] for name, column in table.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_BLOCK", block + max(len(line) for line in delimited(table).split("\n")) * 4)
        patch.setattr(source_module, "_ROWS", 3)
        file = put(tmp_path / "a.csv", delimited(shuffled))
        assert same(read(file), read(table))
        assert same(read(shuffled), read(table))


@given(ratings(), st.permutations(range(100, 120)))
@settings(deadline=None)
def test_renaming_users_renames_the_answer(table, names):
    number = {user: n for n, user in enumerate(dict.fromkeys(table["user"]))}
    new = {user: names[number[user]] for user in number}
    renamed = read(table | {"user": [new[user] for user in table["user"]]})
    cells = lambda data: set(zip(*data.to_arrow().to_pydict().values(), strict=True))  # noqa: E731
    assert cells(renamed) == {(new[user], *rest) for user, *rest in cells(read(table))}


@given(ratings(unique=False), st.sampled_from(["last", "mean", "sum"]), st.booleans())
@settings(deadline=None)
def test_duplicates_as_a_loop_over_a_dict_has_them(table, policy, with_times):
    table["rating"] = [float(np.float32(np.clip(r, -9, 9))) for r in table["rating"]]
    table["timestamp"] = [t % 3 for t in table["timestamp"]]
    groups = defaultdict(list)
    for user, item, rating, time in zip(*table.values(), strict=True):
        groups[user, item].append((time if with_times else 0, len(groups), rating))
    data = read(table, duplicates=policy, timestamp=None if with_times else False)
    assert data.nnz == len(groups)
    assert (data.times is not None) == with_times
    for n, (user, item) in enumerate(zip(*data.to_arrow().select(["user", "item"]).to_pydict().values(), strict=True)):
        group = groups[user, item]
        stars = [rating for _, _, rating in group]
        latest = max(time for time, _, _ in group)
        last = [rating for time, _, rating in group if time == latest][-1]
        expected = {"last": last, "mean": np.mean(stars), "sum": np.sum(stars)}[policy]
        assert data.matrix.data[n] == np.float32(expected)
        assert not with_times or data.times[n] == latest


def test_duplicates_error_names_the_pair(tmp_path):
    file = put(tmp_path / "a.csv", "user,item,rating\nann,7,1\nbob,7,2\nann,7,3\nann,7,4\n")
    with pytest.raises(ValueError, match=r"a\.csv: user 'ann' and item 7 occur 3 times together \(1 such pair\)"):
        read(file, duplicates="error")
    with pytest.raises(ValueError, match="more than float32 holds"):
        read({"user": [1, 1], "item": [1, 1], "rating": [3e38, 3e38]}, duplicates="sum")


def test_events_summed_are_counts_counted():
    events = {"user": [1, 2, 1, 1], "item": [5, 5, 5, 6]}
    assert not read(events).rated
    assert same(read(events, duplicates="sum"), read({"user": [1, 1, 2], "item": [5, 6, 5], "plays": [2, 1, 1]}))


# --- columns ---


@pytest.mark.parametrize(
    "header, row",
    [
        ("userId,movieId,rating,timestamp", "1,2,3,4"),
        ("timestamp;book-rating;ISBN;User-ID", "4;3;2;1"),
        ("asin,reviewerID,overall,unixReviewTime,reviewTime", "2,1,3,4,long ago"),
        ("user_id:token\titem_id:token\trating:float\ttimestamp:float", "1\t2\t3\t4"),
        (",date,stars,review_id,business_id,user_id", "0,1970-01-01T00:00:04Z,3,9,2,1"),
        ("title,movie_id,user,name,value,ts", "x,2,1,y,3,4.7"),
    ],
)
def test_columns_are_found_by_what_they_are_called(tmp_path, header, row):
    data = read(put(tmp_path / "a.csv", f"{header}\n{row}\n"))
    assert data.to_arrow().to_pylist() == [{"user": 1, "item": 2, "rating": 3, "timestamp": 4}]


def test_columns_can_be_given_by_name_place_or_not_at_all(tmp_path):
    file = put(tmp_path / "a.csv", "a,b,c,rating,time\n1,2,3,4,5\n")
    one = {"user": 1, "item": 2, "rating": 4, "timestamp": 5}
    assert read(file, user="a", item="b").to_arrow().to_pylist() == [one]
    assert read(file, user=0, item="B", rating="c").to_arrow().to_pylist() == [one | {"rating": 3}]
    bare = read(file, user=0, item=1, rating=False, timestamp=False)
    assert bare.to_arrow().to_pylist() == [{"user": 1, "item": 2}]
    assert not bare.rated
    file = put(tmp_path / "b.csv", "7,1,5\n8,1,4\n")
    assert read(file).users.ids.tolist() == [7, 8]
    assert read(file, user=1, item=0).items.ids.tolist() == [7, 8]
    assert read(file, item=0).rated
    assert not read(file, rating=False).rated
    assert read(put(tmp_path / "c.csv", "9,1,2,3,4,5\n"), user=1, item=5).to_arrow().to_pylist() == [
        {"user": 1, "item": 5}
    ]


@pytest.mark.parametrize(
    "content, header, rows",
    [
        ("user,book\na,b\n", None, 1),
        ("a,b\nc,d\n", None, 2),
        ("ann,book,5\nbob,film,4\n", None, 2),  # 'book' is a known name, but in a header there is no 5
        ("userid,item,2024\n1,2,3\n", True, 1),
        ("user,item\na,b\n", False, 2),
    ],
)
def test_whether_there_is_a_header(tmp_path, content, header, rows):
    assert read(put(tmp_path / "a.csv", content), header=header).nnz == rows


@given(st.text("a:\n", max_size=60), st.integers(4, 9), st.sampled_from(["::", ":::"]))
@settings(deadline=None)
def test_a_delimiter_is_found_over_the_end_of_what_was_read(content, size, delimiter):
    stream = text_module._Stream(pa.BufferReader(content.encode()), delimiter.encode(), strict=True)
    pieces = b"".join(iter(lambda: stream.read(size), b""))
    assert pieces.decode() == content.replace(delimiter, "\x1f")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    file = put(tmp_path / "a.csv", '\ufeff"who, in all",item\n1,2\n')
    assert read(file, user="who, in all").users.ids.tolist() == [1]


@pytest.mark.parametrize("end", ["", "\n"])
def test_single_colons_belong_to_the_id(tmp_path, end):
    data = read(put(tmp_path / "a.dat", f"4::u:v::b:{end}"), rating=0, user=1, item=2)
    assert data.to_arrow().to_pylist() == [{"user": "u:v", "item": "b:", "rating": 4}]


# --- ids, ratings, times ---


@pytest.mark.parametrize(
    "texts, ids",
    [
        (["10", "9", "-1"], [-1, 9, 10]),
        ([" 10", "9 "], [9, 10]),
        (["007", "7"], ["007", "7"]),
        (["+7", "7"], ["+7", "7"]),
        (["10", "9", "abc"], ["10", "9", "abc"]),
        (["9223372036854775807"], [2**63 - 1]),
        (["9223372036854775808", "1"], ["1", "9223372036854775808"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["NA", "null", "nan"], ["NA", "nan", "null"]),
        (['"a,""b"', '"x\ny"'], ['a,"b', "x\ny"]),
    ],
)
def test_text_is_an_integer_id_only_where_all_of_it_is(tmp_path, texts, ids):
    data = read(put(tmp_path / "a.csv", "user,item\n" + "".join(f"{text},1\n" for text in texts)))
    assert data.users.ids.tolist() == ids


def test_a_late_word_makes_the_whole_column_text(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_BLOCK", 1000)
        data = read(put(tmp_path / "a.csv", "user,item\n" + "".join(f"{n},1\n" for n in range(900)) + "abc,1\n"))
    assert data.users.ids.tolist() == sorted([str(n) for n in range(900)] + ["abc"])


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float64"])
def test_integer_ids_of_every_width(kind):
    data = read({"user": np.array([3, 1], dtype=kind), "item": pa.array([1, 2]).cast(kind), "rating": [1, 2]})
    assert data.users.ids.tolist() == [1, 3]
    assert data.users.ids.dtype == np.int64


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_string_ids_of_every_kind(kind):
    text = pa.array(["é", "a", "é"]).cast(pa.binary()).cast(kind)
    strange = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int8()), pa.array(["b", "a", "b"]))
    data = read({"user": text, "item": strange})
    assert (data.users.ids.tolist(), data.items.ids.tolist()) == (["a", "é"], ["a", "b"])


def test_text_columns_of_a_table_stay_text():
    assert read({"user": ["1", "2"], "item": ["1", "1"]}).users.ids.tolist() == ["1", "2"]


def test_categories_that_no_row_uses_are_no_ids():
    frame = pd.DataFrame({"user": pd.Categorical(["b"], categories=["a", "b", "c"]), "item": [1]})
    assert read(frame).users.ids.tolist() == ["b"]


@pytest.mark.parametrize(
    "times, seconds",
    [
        (pa.array([1500, 2500], pa.timestamp("ms")), [1, 2]),
        (pa.array([-1500, 2500], pa.timestamp("ms", "Europe/Paris")), [-2, 2]),
        (pa.array([1, 2], pa.date32()), [86400, 172800]),
        (pa.array([1.9, 2.0]), [1, 2]),
        (pa.array([1, 2**62], pa.uint64()), [1, 2**62]),
        (["1970-01-01", "1970-01-01 00:01"], [0, 60]),
        (["1970-01-02T00:00:00.25Z", "1970-01-02T00:00:00+01:00"], [86400, 82800]),
        (["1969-12-31T23:59:59.5", "12"], [-1, 12]),
        ([datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 1)], [86400, 0]),
        (pa.array([None, 5]), None),
        (pa.array([None, None]), None),
        (["", "5"], None),
    ],
)
def test_times_are_whole_seconds(times, seconds):
    data = read({"user": [1, 2], "item": [1, 1], "rating": [1, 2], "time": times})
    assert data.times is None if seconds is None else data.times.tolist() == seconds


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
@settings(deadline=None)
def test_a_rating_is_the_float_its_text_says(stars):
    table = {"user": list(range(len(stars))), "item": [0] * len(stars), "rating": [f" {x!r}" for x in stars]}
    assert np.array_equal(read(table).matrix.data, np.array(stars, dtype=np.float32))


# --- what will not do ---

ADVICE = r"\. Drop or mend that line, or pass bad_lines='skip'\."


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is empty"),
        ("\n\r\n", "is empty"),
        ("user,item,rating\n", "has no rows"),
        ("user,item", "has no rows"),
        ("abc\n", "one column only, the first line is 'abc'"),
        ("a,b,c\n1,2,3\n", "no user column among 'a', 'b', 'c'"),
        ("user,what,rating\n1,2,3\n", "no item column among 'user', 'what', 'rating'"),
        ("user,User,item\n1,2,3\n", "the user column could be 'user', 'User': say which one with user="),
        ("user,artist,track\n1,2,3\n", "the item column could be 'artist', 'track'"),
        ("1,2,3,4,5\n", "5 columns and no header"),
        ("1,2,five\n", "line 1: rating is 'five', expected a number" + ADVICE),
        ("user,item,rating\n1,2,3\n\n1,4,five\n", "line 4: rating is 'five', expected a number" + ADVICE),
        ("user,item,rating\n1,2,\n", "line 2: rating is missing, expected a number" + ADVICE),
        ("user,item,rating\n1,2,nan\n", "line 2: rating is 'nan', expected a finite number" + ADVICE),
        ("user,item,rating\n1,2,-inf\n", "line 2: rating is '-inf', expected a finite number" + ADVICE),
        ("user,item,rating\n1,2,1e39\n", "line 2: rating is '1e39', expected a finite number" + ADVICE),
        ("user,item,rating\n,2,3\n", "line 2: user is missing, expected an id" + ADVICE),
        ("user,item,rating\n2,,3\n", "line 2: item is missing, expected an id" + ADVICE),
        ("user,item,rating\n1,2,3\n1,2\n", "line 3: 2 fields, expected 3" + ADVICE),
        ("user,item,rating\n1,2,3\n   \n", "line 3: 1 field, expected 3" + ADVICE),
        ("user,item,rating\n1,2,3,4\n", "line 2: 4 fields, expected 3" + ADVICE),
        ('user,item,rating\n1,2,3\n"1,2,3\n1,2,4\n', "line 3: 1 field, expected 3 \\(is a quote left open"),
        (
            "user,item,rating,time\n1,2,3,soon\n",
            "line 2: timestamp is 'soon', expected seconds or an ISO date",
        ),
        ("user,item,rating,time\n1,2,3,2023-02-29\n", "line 2: timestamp is '2023-02-29', expected"),
        (b"user,item,rating\n1,2,3\n\xff,2,3\n", "line 3: is not UTF-8 text: save the file as UTF-8"),
        ("user,item\n1,2\n".encode("utf-16"), "looks like UTF-16"),
        (b"\0\1\2\3", "holds NUL bytes"),
        (b"PK\x03\x04zip", "is a zip archive"),
        (b"\x1f\x8bnot gzip", "cannot be read: "),
        (gzip.compress(b"user,item,rating\n" + b"1,2,3\n" * 99, mtime=0)[:-20], "cannot be read"),
        (b"PAR1 but nothing more", "cannot be read as Parquet: "),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name_and_line(tmp_path, content, words):
    file = put(tmp_path / "ratings.csv", content)
    with pytest.raises(ValueError, match=rf"ratings\.csv(, |: ){words}") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ratings.csv"]


def test_a_nul_far_down_is_found(tmp_path):
    file = put(tmp_path / "a.csv", "user,item,rating\n" + "1,2,3\n" * 200_000 + "a\0b,2,3\n")
    with pytest.raises(ValueError, match=r"line 200,002: user is 'a.+00b', which holds a NUL character"):
        read(file)


@same_folder
@given(st.data())
@example(None)
def test_the_line_named_is_the_line_in_the_file(tmp_path, data):
    draw = (lambda strategy: data.draw(strategy)) if data else (lambda strategy: "")
    good = st.sampled_from(["1,2,3\n", '"x\n\r\ny",2,3\r\n', "\n", "\r\n", '1,"q""\n",3\n', 'a"b,2,3\n', '"a"b,2,3\r'])
    head = draw(st.sampled_from(["", "user,item,rating\n", "\n\r\nuser,item,rating\n", '"user",item,"rating"\r\n']))
    before = head + "".join(draw(st.lists(good, max_size=60))) + "1,1,1\n"
    bad = draw(st.sampled_from(["1,2,bad\n", "1,2\n", ",2,3\n", '"new\nline",2,bad\n'])) or "1,2\n"
    after = "".join(draw(st.lists(good, max_size=9)))
    line = len(re.findall("\r\n|\r|\n", before)) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_BLOCK", 40)
        file = put(tmp_path / "a.csv", before + bad + after)
        with pytest.raises(ValueError, match=f"a.csv, line {line}: "):
            read(file)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"user": [1, 2], "item": [1, 2], "rating": [1, None]}, "dict, row 1: rating is missing.* that row"),
        (
            {"user": [1, 2], "item": [1, 2], "rating": [1.0, np.nan]},
            "row 1: rating is nan, expected a finite",
        ),
        ({"user": [1.0, np.nan], "item": [1, 2]}, "row 1: user is missing"),
        ({"user": [1.5], "item": [1]}, "user column holds 1.5, expected integers"),
        ({"user": [True], "item": [1]}, "user column is bool, expected integers or strings"),
        ({"user": [1], "item": [[1]]}, "item column is list"),
        ({"user": np.array([2**63], dtype=np.uint64), "item": [1]}, "beyond 64-bit"),
        ({"user": [None], "item": [1]}, "row 0: user is missing"),
        ({"user": [""], "item": [1]}, "row 0: user is missing"),
        ({"user": [1], "item": [1], "rating": [True]}, "rating column is bool"),
        ({"user": [1], "item": [1], "rating": ["x"]}, "row 0: rating is 'x'"),
        ({"user": [1], "item": [1], "time": [np.inf]}, "row 0: timestamp is inf"),
        ({"user": [1], "item": [1], "time": [b"\xff"]}, "dict: "),
        ({"user": [1, "a"], "item": [1, 2]}, "cannot be read as a table"),
        ({"user": [1, 2], "item": [1]}, "cannot be read as a table"),
        ({"user": np.zeros((2, 2)), "item": [1, 2]}, "2 dimensions"),
        ({"user": 1, "item": 2}, "0 dimensions"),
        ({1: [1], 2: [2]}, "expected names that are strings"),
        ({"user": [], "item": []}, "has no rows"),
        ({}, "no user column"),
    ],
)
def test_a_bad_table_is_one_sentence_with_its_row(table, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(table)
    assert "\n" not in str(caught.value)


def test_text_in_a_table_that_is_not_utf8_is_refused():
    offsets, damaged = pa.py_buffer(np.array([0, 1], dtype=np.int32)), pa.py_buffer(b"\xff")
    user = pa.Array.from_buffers(pa.string(), 1, [None, offsets, damaged])
    with pytest.raises(ValueError, match=r"Table: is damaged: .*Invalid UTF8"):
        read(pa.table({"user": user, "item": [1]}))


def test_what_is_no_source_and_what_is_no_argument(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file"):
        read("nowhere.csv")
    with pytest.raises(ValueError, match="is a directory, expected a file"):
        read(tmp_path)
    with pytest.raises(TypeError, match="from int: expected a path"):
        read(7)
    file = put(tmp_path / "a.csv", "user,item,rating\n1,2,3\n")
    for arguments, words in [
        ({"duplicates": "first"}, "expected one of 'last'"),
        ({"bad_lines": "drop"}, "expected 'error' or 'skip'"),
        ({"user": "who"}, "no column 'who', there are 'user', 'item', 'rating'"),
        ({"user": 3}, "numbered 0 to 2"),
        ({"user": -1}, "numbered 0 to 2"),
        ({"user": False}, "expected the name or the position"),
        ({"rating": True}, "expected the name or the position"),
        ({"user": 1.5}, "expected the name or the position"),
        ({"user": "item", "item": "item"}, "are the same column"),
        ({"delimiter": ""}, "expected a character"),
        ({"delimiter": "\n"}, "expected a character"),
        ({"delimiter": "::"}, "one column only"),
        ({"header": False, "user": "user"}, "no header"),
        ({"header": False}, "line 1: rating is 'rating'"),
    ]:
        with pytest.raises(ValueError, match=words):
            read(file, **arguments)


def test_parquet_columns_of_one_name_are_refused(tmp_path):  # Parquet is read by name
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["user", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="several columns are called 'x'"):
        read(tmp_path / "a.parquet", item=1)
    assert read(table, item=2).items.ids.tolist() == [3]


def test_a_damaged_parquet_file_is_one_sentence(tmp_path):
    pq.write_table(pa.table({"user": [1, 2], "item": [1, 2]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match=r"^[^\n]*b\.parquet: [^\n]{1,400}$"):
            read(put(tmp_path / "b.parquet", whole[:cut]))


# --- leaving bad lines out ---


@same_folder
@given(ratings(), st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["x", "1,2", "1,2,x,4", ",2,3,4"]))))
def test_skipping_bad_lines_leaves_the_good_ones(tmp_path, table, bad):
    lines = delimited(table).rstrip("\n").split("\n")
    for place, line in bad:
        lines.insert(1 + place % len(lines), line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_BLOCK", 400)
        file = put(tmp_path / "a.csv", "\n".join(lines))
        if bad:
            with pytest.raises(ValueError, match="bad_lines='skip'"):
                read(file)
            with pytest.warns(UserWarning, match=rf"a\.csv: {len(bad)} lines? left out, the first because "):
                data = read(file, bad_lines="skip")
        else:
            data = read(file, bad_lines="skip")
    assert same(data, read(table))


def test_skipping_every_line_is_an_error(tmp_path):
    file = put(tmp_path / "a.csv", "user,item,rating\n1,2,x\n1\n")
    with (
        pytest.warns(UserWarning, match="2 lines left out"),
        pytest.raises(ValueError, match="no line that can be used"),
    ):
        read(file, bad_lines="skip")


def test_a_skipped_line_decides_nothing():
    table = {"user": ["1", "2", None], "item": [1, 2, 99], "rating": [1, 2, 3], "time": [1, 2, None]}
    with pytest.warns(UserWarning, match="dict: 1 line left out, the first because user is missing"):
        data = read(table, bad_lines="skip")
    assert data.items.ids.tolist() == [1, 2]
    assert data.times.tolist() == [1, 2]


# --- as large as life ---


def test_what_synthetic_draws_comes_back_from_a_file_in_many_blocks(tmp_path, monkeypatch):
    data = synthetic(500, 200, 20_000)
    monkeypatch.setattr(text_module, "_BLOCK", 10_000)
    table = data.to_arrow().to_pydict()
    assert same(read(put(tmp_path / "a.csv", delimited(table))), data)
    assert same(read(put(tmp_path / "a.dat", delimited(table, "::", header=False))), data)


def test_quoted_lines_run_over_the_end_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "_BLOCK", 500)
    table = {"user": [f"a\n{n}\n\n" for n in range(900)], "item": [1] * 900, "rating": [1.5] * 900}
    assert same(read(put(tmp_path / "a.csv", delimited(table))), read(table))


def test_reading_loads_no_heavy_library(tmp_path):
    import subprocess
    import sys

    put(tmp_path / "a.csv", "1,2,3\n")
    code = (
        "import sys, eckart as ek; ek.read(sys.argv[1]);"
        "print([m for m in ('torch', 'pyarrow.dataset', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(Path(tmp_path) / "a.csv")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
