"""``eckart fit``: the same model as the library's, interruptions and restarts included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from pyarrow import csv

import eckart as ek

COMMAND = [sys.executable, "-c", "import sys; from eckart.cli.main import main; sys.exit(main())"]


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_it_saves_the_model_that_the_library_fits(eckart, folder, tmp_path):
    told = eckart(
        "fit", folder / "ratings.csv", "-o", tmp_path / "m", "--rank", 5, "--epochs", 4, "--seed", 3, "--json"
    )
    ek.ALS(rank=5, epochs=4, seed=3).fit(ek.read(folder / "ratings.csv")).save(tmp_path / "same")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "same")
    told = told.json()
    assert told["settings"]["reg"] == ek.ALS().reg, "what is not given is the solver's own default"
    assert (told["solver"], told["epochs"], told["fitted_to"]["entries"]) == ("als", 4, 3000)


def test_the_solver_follows_from_the_file(eckart, folder, tmp_path):
    assert (
        eckart("fit", folder / "pairs.csv", "-o", tmp_path / "m", "--rank", 4, "--json").json()["solver"]
        == "implicit-als"
    )
    assert ek.load(tmp_path / "m").solver == ek.ImplicitALS(rank=4)


def test_any_setting_can_be_given_by_name(eckart, folder, tmp_path):
    arguments = ["--solver", "implicit-als", "-s", "alpha=2.5", "-s", "unobserved_weight=1", "-s", "rank=3"]
    eckart("fit", folder / "ratings.csv", "-o", tmp_path / "m", *arguments)
    assert ek.load(tmp_path / "m").solver == ek.ImplicitALS(rank=3, alpha=2.5, unobserved_weight=1.0)


@pytest.mark.parametrize("by", ["random", "user", "leave_one_out"])
def test_it_reports_what_evaluate_says_of_the_held_out_part(eckart, folder, tmp_path, by):
    arguments = ["--rank", 4, "--seed", 1, "--test", 0.2, "--by", by, "--json"]
    told = eckart("fit", folder / "ratings.csv", "-o", tmp_path / "m", *arguments).json()
    train, test = ek.split(ek.read(folder / "ratings.csv"), test=0.2, by=by, seed=1)
    model = ek.load(tmp_path / "m")
    assert model.seen.nnz == train.nnz
    assert told["test"] == ek.evaluate(model, test, fold_in=0.8 if by == "user" else None).to_dict()


def test_a_pipe_gets_columns_and_nothing_else(eckart, folder, tmp_path):
    answer = eckart("fit", folder / "ratings.csv", "-o", tmp_path / "m", "--rank", 4, "--test", 0.1)
    assert (answer.status, answer.err) == (0, "")
    first, second = answer.out.split("\n\n")
    assert all(line.count("\t") == 1 for line in first.splitlines())
    assert all(line.count("\t") == 3 for line in second.splitlines())
    assert "rmse" in second


def test_lines_left_out_are_counted_on_stderr(eckart, folder, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text((folder / "ratings.csv").read_text() + "7,8,five\n")
    answer = eckart("fit", bad, "-o", tmp_path / "m", "--rank", 4, "--bad-lines", "skip", "--json")
    assert answer.json()["read"]["entries"] == 3000
    assert answer.err.count("\n") == 1
    assert "1 line left out" in answer.err


def test_columns_by_name_and_by_number(eckart, folder, tmp_path):
    odd = tmp_path / "odd.csv"
    odd.write_text("a;b;c\n" + "\n".join(f"{i % 5};x{i};{i % 4}" for i in range(40)) + "\n")
    arguments = ["--user", "b", "--item", 0, "--rating", "c", "--rank", 2, "--delimiter", ";", "--json"]
    told = eckart("fit", odd, "-o", tmp_path / "m", *arguments).json()
    assert (told["read"]["users"], told["read"]["items"]) == (40, 5)


def test_a_model_is_replaced_and_anything_else_is_not(eckart, folder, tmp_path):
    for rank in (3, 4):
        assert eckart("fit", folder / "ratings.csv", "-o", tmp_path / "m", "--rank", rank).status == 0
    assert ek.load(tmp_path / "m").solver.rank == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "mine" in eckart("fit", folder / "ratings.csv", "-o", tmp_path / "mine").mistake()
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Ratings that take a few tenths of a second an epoch at rank 48."""
    path = tmp_path_factory.mktemp("large") / "ratings.csv"
    csv.write_csv(ek.synthetic(3000, 1500, 150_000, seed=0).to_arrow(), path)
    return path


def started(*arguments: object, until) -> subprocess.Popen[str]:
    """Process of one command, once `until()` holds."""
    heeds = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a background job inherits deaf ears
    running = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=-1, stderr=-1, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while not until():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return running


def test_interrupted_it_says_what_is_kept_and_leaves_no_model(large, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    arguments = ["fit", large, "-o", tmp_path / "m", "--rank", 48, "--epochs", 5000, "--checkpoint", checkpoint]
    running = started(*arguments, until=lambda: list(checkpoint.glob("epoch-*")))
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, "")
    assert err.count("\n") == 1
    assert "interrupted" in err
    assert "--resume" in err or "before an epoch was done" in err
    assert not (tmp_path / "m").exists()


def test_interrupted_without_a_checkpoint_it_says_so(large, tmp_path, eckart, monkeypatch):
    def stop(self, data, validation=None, *, callback, **_):
        callback({"epoch": 1, "objective": 2.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(ek.ALS, "fit", stop)
    said = eckart("fit", large, "-o", tmp_path / "m", "--epochs", 7).mistake(status=130)
    assert "interrupted after epoch 1 of 7" in said
    assert "--checkpoint" in said


def test_killed_and_resumed_it_gives_the_bytes_of_an_undisturbed_run(large, tmp_path, process):
    arguments = ["fit", large, "--rank", 48, "--epochs", 12]
    assert process(*arguments, "-o", tmp_path / "undisturbed").status == 0
    checkpoint = tmp_path / "checkpoint"
    again = [*arguments, "-o", tmp_path / "m", "--checkpoint", checkpoint]
    running = started(*again, until=lambda: (checkpoint / "epoch-000002").exists())
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    assert "resume" in process(*again).mistake(), "a checkpoint is not gone on from, or lost, unasked"
    assert process(*again, "--resume").status == 0
    assert files_of(tmp_path / "m") == files_of(tmp_path / "undisturbed")


def test_a_diverging_fit_is_one_line_and_no_model(eckart, tmp_path):
    huge = tmp_path / "huge.csv"
    rng = np.random.default_rng(0)
    huge.write_text(
        "user,item,rating\n" + "\n".join(f"{i % 20},{i // 20},{r:.3g}" for i, r in enumerate(rng.normal(0, 1e38, 400)))
    )
    eckart("fit", huge, "-o", tmp_path / "m", "--rank", 4, "--epochs", 2).mistake()
    assert not (tmp_path / "m").exists()
