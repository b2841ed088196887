"""Features on the command line: fitted to, asked with, told of, and refused."""

from __future__ import annotations

import pytest
from pyarrow import csv, parquet

import eckart as ek


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Ratings with text ids for users and integers for items, features of both, and a model fitted to all of them."""
    folder = tmp_path_factory.mktemp("shop")
    data = ek.synthetic(60, 50, 1500, seed=0).to_arrow()
    people = [f"u{x}" for x in data["user"].to_pylist()]
    csv.write_csv(data.set_column(0, "user", [people]), folder / "ratings.csv")
    names = sorted({*people}, key=lambda x: int(x[1:]))
    users = ["user,age,town,code"]
    users += [f"{name},{20 + i if i % 7 else ''},{['Rom', 'Oslo'][i % 2]},{i % 5}" for i, name in enumerate(names)]
    (folder / "users.csv").write_text("\n".join(users))
    items = ["item,genre,code,note"] + [
        f"{i},{['crime|drama', 'war', 'drama'][i % 3]},{i % 4},no. {i}" for i in range(55)
    ]
    (folder / "items.csv").write_text("\n".join(items))
    options = ["--user-features", folder / "users.csv", "--item-features", folder / "items.csv"]
    options += ["--feature-kind", "code=categories", "--feature-kind", "note=none", "--rank", 4, "--epochs", 3]
    model = ek.ALS(rank=4, epochs=3).fit(
        ek.read(folder / "ratings.csv"),
        user_features=ek.read_features(folder / "users.csv", kinds={"code": "categories"}),
        item_features=ek.read_features(folder / "items.csv", kinds={"code": "categories", "note": None}),
    )
    model.save(folder / "model")
    ek.ALS(rank=4, epochs=3).fit(ek.read(folder / "ratings.csv")).save(folder / "plain")
    return folder, options


def same_files(one, other):
    return {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


def test_it_saves_the_model_that_the_library_fits(eckart, shop, tmp_path):
    folder, options = shop
    told = eckart("fit", folder / "ratings.csv", "-o", tmp_path / "m", *options, "--json").json()
    assert same_files(tmp_path / "m", folder / "model")
    assert told["item_features"] == {"rows": 55, "of_those_fitted": 50}


def test_parquet_a_named_id_column_and_ids_that_are_text_in_the_ratings(eckart, shop, tmp_path):
    folder, _ = shop
    pairs = [f"{u},{'x' if i == 3 else i}" for u in range(20) for i in range(12) if (u + i) % 3]
    (tmp_path / "pairs.csv").write_text("user,thing\n" + "\n".join(pairs))
    table = csv.read_csv(folder / "items.csv").rename_columns(["thing", "genre", "code", "note"])
    parquet.write_table(table, tmp_path / "items.parquet")
    run = ["fit", tmp_path / "pairs.csv", "-o", tmp_path / "m", "--item", "thing", "--rank", 3, "--item-features"]
    told = eckart(*run, tmp_path / "items.parquet", "--json").json()
    assert (told["solver"], told["item_features"]) == ("implicit-als", {"rows": 55, "of_those_fitted": 11})
    rows = eckart("recommend", tmp_path / "m", 3, "--add-items", tmp_path / "items.parquet", "--item", "thing",
                  "-k", 60, "--json").json()["recommendations"]  # fmt: skip
    things = ek.read_features({"id": [str(i) for i in range(55)], "genre": table["genre"].to_pylist(),
                               "code": table["code"].to_pylist(), "note": table["note"].to_pylist()})  # fmt: skip
    assert rows == ek.load(tmp_path / "m").add_items(things).recommend(3, 60).to_pylist()
    assert {row["item"] for row in rows if row["item_status"] == "cold"} == {"3", *(str(i) for i in range(12, 55))}


def test_two_towers_read_features(eckart, shop, tmp_path):
    pytest.importorskip("torch")
    folder, options = shop
    run = [
        "fit",
        folder / "ratings.csv",
        "-o",
        tmp_path / "m",
        "--solver",
        "two-tower",
        "-s",
        "device=cpu",
        *options,
        "--epochs",
        1,
    ]
    eckart(*run, "--json").json()
    model = ek.load(tmp_path / "m")
    assert model.solver.item == model.solver.user == (ek.Ids(), ek.MLP())
    told = eckart("recommend", tmp_path / "m", "--feature", "town=Oslo", "-k", 3, "--json").json()["recommendations"]
    assert [row["status"] for row in told] == ["cold"] * 3


def test_someone_nobody_has_seen(eckart, shop):
    folder, _ = shop
    model = ek.load(folder / "model")
    told = eckart("recommend", folder / "model", "--feature", "age=33", "--feature", "town=Oslo", "-k", 4, "--json")
    same = model.recommend(features={"age": 33.0, "town": "Oslo"}, k=4).to_pylist()
    assert [(r["item"], r["score"]) for r in told.json()["recommendations"]] == [(r["item"], r["score"]) for r in same]
    assert {row["status"] for row in told.json()["recommendations"]} == {"cold"}
    assert told.err == ""
    run = ["recommend", folder / "model", "--feature", "town=Oslo", "--history", "3=5", "-k", 4, "--explain", "--json"]
    both = eckart(*run).json()["recommendations"]
    same = model.recommend(history={3: 5.0}, features={"town": "Oslo"}, k=4).to_pylist()
    assert [(r["item"], r["score"]) for r in both] == [(r["item"], r["score"]) for r in same]
    for row in both:
        assert row["status"] == "warm"
        assert row["baseline"] + sum(x["contribution"] for x in row["reasons"]) == pytest.approx(row["score"], abs=1e-4)
    explained = eckart("recommend", folder / "model", "--feature", "town=Oslo", "-k", 2, "--explain", "--json").json()
    assert all(row["baseline"] == pytest.approx(row["score"], abs=1e-4) for row in explained["recommendations"])
    assert all(row["reasons"] == [] for row in explained["recommendations"])


def test_an_unknown_user_is_told_that_features_would_help(eckart, shop):
    folder, _ = shop
    answer = eckart("recommend", folder / "model", "zoe", "-k", 2, "--json")
    assert {row["status"] for row in answer.json()["recommendations"]} == {"unknown"}
    assert answer.err.count("\n") == 1
    assert "--feature" in answer.err
    assert "--feature" not in eckart("recommend", folder / "plain", "zoe", "-k", 2).err


def test_new_items_compete_and_are_told_apart(eckart, shop):
    folder, _ = shop
    model = ek.load(folder / "model")
    run = ["recommend", folder / "model", "u3", "--add-items", folder / "items.csv", "-k", 55]
    told = eckart(*run, "--json").json()["recommendations"]
    things = ek.read_features(folder / "items.csv", kinds={"code": "categories", "note": None})
    assert told == model.add_items(things).recommend("u3", 55).to_pylist()
    assert {row["item"] for row in told if row["item_status"] == "cold"} == {50, 51, 52, 53, 54}
    assert eckart(*run).out.splitlines()[0].split("\t")[-1] == "item_status"
    only = eckart(*run, "--only", 52, "--json").json()["recommendations"]
    assert [row["item"] for row in only] == [52]


def test_info_says_what_a_model_reads(eckart, shop):
    folder, _ = shop
    told = eckart("info", folder / "model", "--json").json()
    assert told["user_features"] == {"age": "number", "town": "categories", "code": "categories"}
    assert told["item_features"] == {"genre": "categories", "code": "categories"}
    assert told["cold_items"] == 0
    assert "genre categories" in eckart("info", folder / "model").out
    assert eckart("info", folder / "plain", "--json").json()["item_features"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--solver", "sgd"], 1, "SGD learns from no features"),
        (["--feature-kind", "genre=colour"], 2, "genre=colour"),
        (["--feature-kind", "colour=number"], 1, "'colour'"),
        (["--feature-kind", "genre=number"], 1, "genre"),
        (["--feature-kind", "genre=text", "--feature-kind", "genre=text"], 2, "twice"),
    ],
)
def test_a_mistake_in_fit_is_one_line(eckart, shop, tmp_path, arguments, status, said):
    folder, _ = shop
    run = ["fit", folder / "ratings.csv", "-o", tmp_path / "m", "--item-features", folder / "items.csv", *arguments]
    assert said in eckart(*run).mistake(status)
    assert not (tmp_path / "m").exists()


def test_features_of_others_and_no_column_of_ids(eckart, shop, tmp_path):
    folder, _ = shop
    (tmp_path / "other.csv").write_text("item,genre\n900,war\n901,drama\n")
    (tmp_path / "none.csv").write_text("thing,genre\n1,war\n2,drama\n")
    for name, said in (("other", "900|item|ids"), ("none", "--item")):
        run = ["fit", folder / "ratings.csv", "-o", tmp_path / "m", "--item-features", tmp_path / f"{name}.csv"]
        line = eckart(*run).mistake()
        assert any(word in line for word in said.split("|"))
        assert "id=" not in line
    assert "--item" in eckart("recommend", folder / "model", "u1", "--add-items", tmp_path / "none.csv").mistake()
    (tmp_path / "few.csv").write_text("item,colour\n70,red\n71,blue\n")
    assert "genre" in eckart("recommend", folder / "model", "u1", "--add-items", tmp_path / "few.csv").mistake()


@pytest.mark.parametrize(
    ("model", "arguments", "status", "said"),
    [
        ("model", ["u1", "--feature", "age=3"], 2, "either USER"),
        ("model", ["--feature", "age"], 2, "NAME=VALUE"),
        ("model", ["--feature", "age=3", "--feature", "age=4"], 2, "twice"),
        ("model", ["--feature", "age=old"], 1, "expected a number"),
        ("model", ["--feature", "height=3"], 1, "height"),
        ("plain", ["--feature", "age=3"], 1, "--user-features"),
        ("plain", ["u1", "--add-items", "items.csv"], 1, "--item-features"),
        ("model", ["u1", "--item", "thing"], 2, "--add-items"),
    ],
)
def test_a_mistake_in_recommend_is_one_line(eckart, shop, monkeypatch, model, arguments, status, said):
    folder, _ = shop
    monkeypatch.chdir(folder)
    assert said in eckart("recommend", model, *arguments).mistake(status)
