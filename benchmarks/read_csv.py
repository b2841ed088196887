"""How fast, and in how little memory, ek.read takes 20 M ratings of CSV; pandas.read_csv beside it.

python benchmarks/read_csv.py [--rows 20000000]        prints one JSON object

pandas only parses the four columns; ek.read also maps ids to rows, merges duplicates and builds the matrix.
Both start from a file in the page cache, each in a process of its own; the peak is that of the process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

import eckart as ek

READERS = {
    "eckart": "import eckart as ek; f = ek.read",
    "pandas": "import pandas as pd; f = pd.read_csv",
}
MEASURE = """
import json, resource, sys, time
start = time.perf_counter()
data = f(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def write_ratings(path: Path, rows: int) -> None:
    """CSV of MovieLens-20M's proportions, in order of user and time, as its ratings.csv is."""
    scale = min(1.0, rows / 20_000_000)
    data = ek.synthetic(max(1, int(138_493 * scale)), 26_744, rows)
    times = np.random.default_rng(0).integers(789_652_009, 1_427_784_002, rows)
    table = data.to_arrow().append_column("timestamp", pa.array(times))
    table = table.rename_columns(["userId", "movieId", "rating", "timestamp"])
    with pyarrow.csv.CSVWriter(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=1 << 20):
            writer.write_batch(batch)


def measure(reader: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", READERS[reader] + MEASURE, str(path)]
    seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.csv"
        # in a process of its own, for a child's peak includes what its parent held when it was started
        writer = multiprocessing.get_context("spawn").Process(target=write_ratings, args=(path, rows))
        writer.start()
        writer.join()
        ours, theirs = measure("eckart", path), measure("pandas", path)
        result = {
            "rows": rows,
            "file_mb": round(path.stat().st_size / 1e6),
            "seconds": round(ours[0], 2),
            "peak_rss_mb": round(ours[1]),
            "pandas_read_csv_seconds": round(theirs[0], 2),
            "pandas_peak_rss_mb": round(theirs[1]),
            "pandas_over_eckart": round(theirs[0] / ours[0], 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
