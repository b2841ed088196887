"""A small file of ratings, a model fitted to it, and the command line called in this process or in its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pyarrow import csv

import eckart as ek
from eckart.cli.main import main


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1, "one object on one line"
        return json.loads(self.out, parse_constant=pytest.fail)

    def mistake(self, status: int = 1) -> str:
        """The one line that answers a mistake."""
        assert (self.status, self.out) == (status, "")
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("eckart: ")
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture
def eckart(capfd) -> Callable[..., Answer]:
    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        sys.stdout.flush()
        return Answer(status, *capfd.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., Answer]:
    def run(*arguments: object, **options: Any) -> Answer:
        command = [sys.executable, "-c", "import sys; from eckart.cli.main import main; sys.exit(main())"]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, **options)
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """ratings.csv, train.csv and test.csv of it, pairs.csv without ratings, and a `model` fitted to train.csv."""
    folder = tmp_path_factory.mktemp("cli")
    data = ek.synthetic(120, 80, 3000, seed=0)
    train, test = ek.split(data, test=0.1, seed=0)
    for name, part in (("ratings", data), ("train", train), ("test", test)):
        csv.write_csv(part.to_arrow(), folder / f"{name}.csv")
    csv.write_csv(data.to_arrow().select(["user", "item"]), folder / "pairs.csv")
    ek.ALS(rank=4, epochs=3).fit(train).save(folder / "model")
    ek.ImplicitALS(rank=4, epochs=3).fit(train).save(folder / "ranking")
    return folder
