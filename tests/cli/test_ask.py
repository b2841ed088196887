"""``eckart evaluate | recommend | similar | info``: the numbers of the library, ids as the model has them."""

from __future__ import annotations

import sys

import pytest

import eckart as ek
from eckart.recommend.solver import SOLVERS


def test_evaluate_says_what_the_library_says(eckart, folder):
    model, test = ek.load(folder / "model"), ek.read(folder / "test.csv")
    told = eckart("evaluate", folder / "model", folder / "test.csv", "--k", 5, "--relevant", 4, "--json").json()
    report = ek.evaluate(model, test, 5, relevant=4.0).to_dict()
    assert {key: told[key] for key in report} == report
    plain = eckart("evaluate", folder / "model", folder / "test.csv")
    assert plain.err == ""
    assert f"rmse\t{report['rmse']:.6g}" in plain.out


def test_evaluate_says_when_the_test_was_learnt(eckart, folder):
    answer = eckart("evaluate", folder / "model", folder / "train.csv", "--json")
    assert answer.json()["seen_entries"] == ek.read(folder / "train.csv").nnz
    assert "training data" in answer.err


def test_evaluate_new_users(eckart, folder, tmp_path):
    lines = (folder / "test.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join([lines[0], *("77" + line for line in lines[1:])]))
    told = eckart("evaluate", folder / "model", tmp_path / "new.csv", "--fold-in", 0.5, "--json").json()
    assert told["folded_entries"] > 0


def test_integers_in_a_test_of_a_model_with_text_ids(eckart, tmp_path):
    lines: dict[int, list[str]] = {0: [], 1: []}
    for u in range(12):
        for i in range(10):
            lines[(u + i) % 2].append(f"{u},{i},{1 + (u * i) % 5}")
    (tmp_path / "train.csv").write_text("user,item,rating\n" + "\n".join([*lines[0], "ann,x7,4"]))
    (tmp_path / "test.csv").write_text("user,item,rating\n" + "\n".join(lines[1]))
    assert eckart("fit", tmp_path / "train.csv", "-o", tmp_path / "m", "--rank", 2).status == 0
    assert ek.load(tmp_path / "m").items.is_text
    assert not ek.read(tmp_path / "test.csv").items.is_text
    told = eckart("evaluate", tmp_path / "m", tmp_path / "test.csv", "--json").json()
    assert (told["entries"], told["unknown_users"], told["unknown_item_entries"]) == (60, 0, 0)


def test_recommend_finds_integer_ids_and_gives_the_librarys_list(eckart, folder):
    model = ek.load(folder / "model")
    told = eckart("recommend", folder / "model", 3, 5, "-k", 4, "--json").json()["recommendations"]
    assert told == model.recommend([3, 5], 4).to_pylist()
    assert {row["status"] for row in told} == {"hot"}
    lines = eckart("recommend", folder / "model", 3, 5, "-k", 4).out.splitlines()
    assert lines[0].split("\t") == ["user", "rank", "item", "score", "status"]
    assert [int(line.split("\t")[2]) for line in lines[1:]] == [row["item"] for row in told]


def test_only_some_items_compete_and_some_do_not(eckart, folder, tmp_path):
    model = ek.load(folder / "model")
    items = model.items.ids[:12].tolist()
    (tmp_path / "stock.txt").write_text("\ufeff" + "\n".join(map(str, items[1:])) + "\n\n", "utf-8")
    told = eckart("recommend", folder / "model", 3, "--only", f"@{tmp_path / 'stock.txt'}", "--only", items[0],
                  "--exclude", items[4], "--exclude", "999999", "--json").json()  # fmt: skip
    assert told["recommendations"] == model.recommend(3, items=items, exclude=items[4]).to_pylist()
    assert len(told["recommendations"]) > 0
    for wrong, said in (("999999", "item 999999 is not in the model"), (f"@{tmp_path / 'none'}", "No such file")):
        answer = eckart("recommend", folder / "model", 3, "--only", wrong)
        assert answer.status == 1
        assert said in answer.err
        assert answer.err.count("\n") == 1


def test_a_user_nobody_knows_is_unknown_and_said_so(eckart, folder):
    answer = eckart("recommend", folder / "model", "zoe", 3, "-k", 2, "--explain", "--json")
    rows = answer.json()["recommendations"]
    assert [(row["user"], row["status"]) for row in rows] == [("zoe", "unknown")] * 2 + [(3, "hot")] * 2
    assert answer.err.count("\n") == 1
    assert "zoe" in answer.err


def test_a_newcomer_is_folded_in(eckart, folder):
    model = ek.load(folder / "model")
    told = eckart("recommend", folder / "model", "--history", "3=5", "--history", "4=1", "-k", 3, "--json").json()
    same = model.recommend(history={3: 5.0, 4: 1.0}, k=3).to_pylist()
    told = told["recommendations"]
    assert [(row["item"], row["score"], row["status"]) for row in told] == [
        (r["item"], r["score"], "warm") for r in same
    ]


def test_a_history_without_ratings_for_a_model_that_ranks(eckart, folder):
    model = ek.load(folder / "ranking")
    told = eckart("recommend", folder / "ranking", "--history", "3", "--history", "4", "-k", 3, "--json").json()
    same = model.recommend(history=[3, 4], k=3)
    assert [row["item"] for row in told["recommendations"]] == same["item"].to_pylist()


def test_reasons_add_up_as_far_as_they_are_shown(eckart, folder):
    model = ek.load(folder / "model")
    told = eckart("recommend", folder / "model", 3, "-k", 2, "--explain", "--json").json()["recommendations"]
    for row in told:
        why = model.explain(3, row["item"])
        assert row["baseline"] == why.baseline
        assert row["reasons"] == why.reasons.to_pylist()[:3]
    shown = eckart("recommend", folder / "model", 3, "-k", 2, "--explain").out.splitlines()
    assert str(told[0]["reasons"][0]["item"]) in shown[1].split("\t")[-1]


def test_similar_gives_the_librarys_list(eckart, folder):
    told = eckart("similar", folder / "model", 3, 5, "-k", 4, "--json").json()["similar"]
    assert told == ek.load(folder / "model").similar([3, 5], 4).to_pylist()


def test_info_of_the_installation(eckart):
    told = eckart("info", "--json").json()
    assert told["version"] == ek.__version__
    assert told["kernels"] == {k: list(v) if isinstance(v, tuple) else v for k, v in ek.kernel_info().items()}
    assert set(told["solvers"]) == set(SOLVERS)
    assert told["solvers"]["als"]["reg"] == ek.ALS().reg
    for extra in ("demo", "plot", "torch", "hf"):
        assert told["extras"][extra]["installed"] == (not told["extras"][extra]["missing"])
    assert "solver als" in eckart("info").out


def test_info_of_a_model(eckart, folder):
    model = ek.load(folder / "model")
    told = eckart("info", folder / "model", "--json").json()
    assert (told["users"], told["items"], told["entries"]) == (*model.seen.shape, model.seen.nnz)
    assert told["history"] == model.history
    assert told["settings"]["rank"] == 4
    assert "threads" not in told["settings"]
    assert len(eckart("info", folder / "model").out.splitlines()) == len(told) - 1 + 1 + 1 + 1 + len(model.history)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model whose ids would steer a terminal, or be markup."""
    folder = tmp_path_factory.mktemp("hostile")
    names = ["[red]Heat[/red]", "\x1b[2JAlien", "Jaws\u202e", "Up=5", "[/]", "tab\there", "$x^2$"]
    entries = {"user": [], "item": [], "rating": []}
    for u in range(8):
        for i, name in enumerate(names):
            if (u + i) % 3:
                for key, value in zip(entries, (f"[bold]u{u}", name, (u * i) % 5 + 1.0), strict=True):
                    entries[key].append(value)
    ek.ALS(rank=2, epochs=2).fit(ek.read(entries)).save(folder / "model")
    return folder / "model"


def test_ids_from_strangers_are_shown_and_never_obeyed(eckart, hostile):
    answer = eckart("recommend", hostile, "[bold]u1", "--explain")
    assert answer.status == 0
    assert "[bold]u1" in answer.out
    assert all(line.isprintable() for line in answer.out.replace("\t", "").splitlines())
    told = eckart("recommend", hostile, "[bold]u1", "--json").json()["recommendations"]
    assert [row["item"] for row in told] == ek.load(hostile).recommend("[bold]u1")["item"].to_pylist()


def test_on_a_terminal_too(hostile, monkeypatch, capsys):
    from eckart.cli.main import main

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["similar", str(hostile), "[red]Heat[/red]", "\x1b[2JAlien"]) == 0
    out = capsys.readouterr().out
    assert "[red]Heat[/red]" in out
    assert "\x1b[2J" not in out
    assert "\u202e" not in out
    assert "…" not in out, "nothing is cut off"


def test_an_equals_sign_in_an_id(eckart, hostile):
    told = eckart("recommend", hostile, "--history", "Up=5=4", "-k", 1, "--explain", "--json").json()
    assert told["recommendations"][0]["reasons"] == [
        {
            "item": "Up=5",
            "value": 4.0,
            "contribution": pytest.approx(told["recommendations"][0]["reasons"][0]["contribution"]),
        }
    ]
