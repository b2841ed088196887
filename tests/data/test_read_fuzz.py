"""Thousands of damaged files: each is read into sound interactions or refused in one sentence."""

import gzip
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eckart.data.read import read

CASES = 700
ROWS = [(u, i, (u * i) % 9 / 2 + 0.5, 978300000 + 60 * u) for u in range(1, 7) for i in (3, 50, 661)]
SPICE = [
    b"\0",
    b'"',
    b"\n",
    b"\r",
    b"::",
    b",",
    b"\t",
    b"nan",
    b"1e999",
    b"\xff",
    b"\xef\xbb\xbf",
    b"-",
    b"'",
    b" ",
]


def lines(delimiter, header, name="{}"):
    rows = [delimiter.join([name.format(u), str(i), str(r), str(t)]) for u, i, r, t in ROWS]
    return "\n".join(([delimiter.join(["user", "item", "rating", "time"])] if header else []) + rows).encode()


def parquet(**options):
    columns = dict(zip(["user", "item", "rating", "time"], map(list, zip(*ROWS, strict=True)), strict=True))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns | {"user": [f"u{u}" for u in columns["user"]]}), sink, **options)
    return sink.getvalue().to_pybytes()


SEEDS = {
    "a.csv": lines(",", header=True),
    "quoted.csv": lines(",", header=True, name='"the ""{}""\nof Ö"'),
    "a.tsv": lines("\t", header=False, name="u{}"),
    "a.dat": lines("::", header=False),
    "a.csv.gz": gzip.compress(lines(",", header=True)),
    "a.parquet": parquet(),
    "plain.parquet": parquet(compression="none", use_dictionary=False),
}


def mutated(content, rng):
    """One to four changes: bytes flipped, cut out, put in or repeated, the end lost, or nothing but noise."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1))
        upto = at + int(rng.integers(1, 9))
        match rng.integers(7):
            case 0:
                data[at:upto] = bytes(byte ^ int(rng.integers(1, 256)) for byte in data[at:upto])
            case 1:
                del data[at:upto]
            case 2:
                data[at:at] = rng.bytes(upto - at)
            case 3:
                data[at:at] = SPICE[rng.integers(len(SPICE))]
            case 4:
                data[at:at] = data[: int(rng.integers(60))]
            case 5 if rng.random() < 0.3:
                del data[at:]
            case 6 if rng.random() < 0.1:
                data = bytearray(rng.bytes(int(rng.integers(200))))
    return bytes(data)


def check_sound(data):
    matrix = data.matrix
    assert data.nnz > 0
    assert matrix.shape == (len(data.users), len(data.items))
    assert np.isfinite(matrix.data).all()
    assert matrix.indptr[0] == 0
    assert matrix.indptr[-1] == len(matrix.indices) == len(matrix.data)
    assert (np.diff(matrix.indptr) > 0).all()
    assert ((matrix.indices >= 0) & (matrix.indices < len(data.items))).all()
    assert len(np.unique(matrix.indices)) == len(data.items)
    assert matrix.has_canonical_format
    assert data.times is None or len(data.times) == data.nnz
    data.to_arrow().validate(full=True)


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_read_soundly_or_refused_in_a_sentence(name, tmp_path):
    rng = np.random.default_rng(list(name.encode()))
    path = tmp_path / name
    refused = 0
    for case in range(CASES):
        content = mutated(SEEDS[name], rng)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                data = read(
                    path,
                    bad_lines="skip" if case % 2 else "error",
                    duplicates=("last", "mean", "sum")[case % 3],
                )
            except ValueError as error:
                refused += 1
                sentence = str(error)
                assert "\n" not in sentence, (case, content)
                assert 0 < len(sentence) <= 500, (case, content)
                assert name in sentence, (case, content)
                continue
            except BaseException as error:
                raise AssertionError(f"case {case}: {content!r}") from error
        check_sound(data)
    assert 0 < refused < CASES
