"""``eckart tune``: the library's search, shown, reported and fitted."""

from __future__ import annotations

import json
import shlex

import pytest

import eckart as ek

QUICK = ["--trials", 4, "--epochs", 4, "--range", "rank=1:8"]


def quick(path, seed=0):
    return ek.tune(ek.read(path), ek.ALS(seed=seed), trials=4, epochs=4, seed=seed, space={"rank": (1, 8)})


def test_it_tells_what_the_library_finds_and_saves_its_fit(eckart, folder, tmp_path):
    told = eckart("tune", folder / "ratings.csv", "-o", tmp_path / "m", *QUICK, "--seed", 2, "--json").json()
    tuning = quick(folder / "ratings.csv", seed=2)
    assert (told["validation"], told["metric"], told["stopped"]) == (tuning.value, "rmse", "trials")
    assert len(told["trials"]) == 4
    assert set(told["trials"][0]) == set(tuning.trials.column_names)
    model = ek.load(tmp_path / "m")
    assert model.solver == tuning.solver
    assert model.seen.nnz == 3000, "fitted to everything"


def test_the_command_it_tells_fits_the_same_model(eckart, folder, tmp_path):
    told = eckart("tune", folder / "ratings.csv", "-o", tmp_path / "m", *QUICK, "--json").json()
    words = shlex.split(told["command"].replace("MODEL", str(tmp_path / "again")))
    assert eckart(*words[1:]).status == 0
    for path in (tmp_path / "m").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_what_is_set_is_not_searched_and_pairs_are_ranked(eckart, folder):
    told = eckart(
        "tune", folder / "pairs.csv", *QUICK, "-s", "unobserved_weight=0.3", "--metric", "recall@5", "--test", 0.1,
        "--json",
    ).json()  # fmt: skip
    assert (told["solver"], told["settings"]["unobserved_weight"]) == ("implicit-als", 0.3)
    assert "unobserved_weight" not in told["trials"][0]
    assert "recall@10" in told["test"]


def test_the_report_names_every_trial_and_shows_two_pictures(eckart, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="the report draws: pip install 'eckart[plot]'")
    answer = eckart("tune", folder / "ratings.csv", *QUICK, "--test", 0.1, "--report", tmp_path / "r")
    assert answer.status == 0, answer.err
    text = (tmp_path / "r" / "report.md").read_text()
    assert text.count("\n| ") == 5
    assert "95 % interval" in text
    for name in ("settings.png", "progress.png"):
        assert f"({name})" in text
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")


def test_a_pipe_gets_three_tables(eckart, folder):
    answer = eckart("tune", folder / "ratings.csv", *QUICK, "--test", 0.1)
    assert (answer.status, answer.err) == (0, "")
    trials, summary, test = answer.out.split("\n\n")
    assert len(trials.splitlines()) == 5
    assert "eckart fit" in summary
    assert "rmse" in test


def test_interrupted_it_shows_the_best_so_far_and_fits_nothing(eckart, folder, tmp_path, monkeypatch):
    fit, fits = ek.ALS.fit, []

    def third(self, *arguments, **options):
        fits.append(self)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(ek.ALS, "fit", third)
    answer = eckart("tune", folder / "ratings.csv", "-o", tmp_path / "m", *QUICK, "--json")
    assert answer.status == 130
    assert (json.loads(answer.out)["stopped"], len(json.loads(answer.out)["trials"])) == ("interrupted", 3)
    assert "interrupted" in answer.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--range", "rank"], "name=low:high"),
        (["--range", "rank=1:x"], "name=low:high"),
        (["--range", "rank=1:4", "-s", "rank=3"], "given twice"),
        (["--test", "2"], "--test is 2"),
        (["--solver", "als", "-s", "alhpa=2"], "alhpa"),
    ],
)
def test_bad_usage_is_one_line(eckart, folder, arguments, message):
    assert message in eckart("tune", folder / "ratings.csv", *arguments).mistake(status=2)


def test_a_search_that_cannot_be_is_one_line(eckart, folder):
    assert "rsme" in eckart("tune", folder / "ratings.csv", "--metric", "rsme").mistake()
    assert "expected seconds" in eckart("tune", folder / "ratings.csv", "--budget", -1).mistake()
