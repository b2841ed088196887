"""eckart compress, heal, compare and perplexity, as they are called."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture
def calibration(text, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(text)
    return file


FEW = ("--windows", 6, "--context", 24, "--gradients", 2)


def test_a_model_is_compressed_and_measured(eckart, language_model, calibration, tmp_path):
    out = tmp_path / "out"
    made = eckart(
        "compress", language_model, "-o", out, "--keep", 0.6, "--calibration", calibration, *FEW, "--json"
    ).json()
    assert 0.5 < made["keep"] <= 0.6
    assert made["output"] == str(out)
    assert made["calibration"] == {"windows": 6, "context": 24, "gradients": 2, "seed": 0}
    measured = {}
    for model in (language_model, out):
        answer = eckart("perplexity", model, calibration, "--context", 24, "--windows", 4, "--json").json()
        (measured[model],) = answer["texts"]
    assert measured[out]["tokens"] == 4 * 23
    assert measured[out]["perplexity"] != measured[language_model]["perplexity"]


def test_a_dry_run_says_what_budgets_buy_and_is_gone_on_from(eckart, language_model, calibration, tmp_path):
    out = tmp_path / "out"
    asked = ("compress", language_model, "-o", out, "--calibration", calibration, *FEW)
    dry = eckart(*asked, "--dry-run", "--weigh", 8, "--json").json()
    assert not out.exists()
    sizes = [row["MB"] for row in dry["budgets"]]
    assert sizes == sorted(sizes, reverse=True)
    losses = [row["loss"] for row in dry["budgets"]]
    assert losses == sorted(losses)
    assert dry["plan"]["keep"] <= 0.8
    made = eckart(*asked, "--weigh", 8, "--json").json()
    assert made["predicted_loss"] == dry["plan"]["loss"]
    assert json.loads((out / "plan.json").read_text()) == dry["plan"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["out", "text.txt"]


def test_embeddings_are_layers_of_the_plan_where_they_are_asked_for(eckart, llama, calibration, tmp_path):
    asked = ("compress", llama, "--calibration", calibration, *FEW, "--keep", 0.5, "--embeddings")
    plan = eckart(*asked, "--dry-run", "--json").json()["plan"]
    groups = [layer for name, layer in plan["layers"].items() if name.startswith("model.embed_tokens[")]
    assert sum(layer["shape"][0] for layer in groups) == 64
    made = eckart(*asked, "-o", tmp_path / "out", "--json").json()
    assert made["predicted_loss"] == plan["loss"]


def test_a_dry_run_draws_and_prints(eckart, llama, calibration, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    answer = eckart(
        "compress",
        llama,
        "--calibration",
        calibration,
        *FEW,
        "--dry-run",
        "--plot",
        picture,
        "--multiple",
        4,
        "--least",
        6,
    )
    assert answer.status == 0
    assert picture.stat().st_size > 1000
    lines = answer.out.splitlines()
    assert lines[0].split("\t") == ["keep", "loss", "as they are", "MB"]
    ranks = [line.split("\t")[3] for line in lines[lines.index("") + 2 :]]
    assert all(rank == "as it is" or int(rank) in range(8, 99, 4) for rank in ranks)


def test_a_model_is_healed(eckart, llama, calibration, tmp_path):
    out, few = tmp_path / "out", ("--windows", 6, "--context", 24)
    eckart("compress", llama, "-o", out, "--keep", 0.6, "--calibration", calibration, *FEW, "--json").json()
    made = eckart("heal", out, "--original", llama, "--text", calibration, "-o", out, *few, "--json").json()
    assert made["healing"]["windows"] == 6
    assert json.loads((out / "eckart.json").read_text())["healing"] == made["healing"]
    asked = ("heal", out, "--text", calibration, "-o", out, *few, "--original")
    assert "the loss of step" in eckart(*asked, llama, "--lr", 1e30).mistake()
    assert (
        "no layer of low rank"
        in eckart("heal", llama, *asked[2:4], "-o", tmp_path / "b", *few, *asked[-1:], llama).mistake()
    )
    assert "is no directory" in eckart(*asked, tmp_path / "no").mistake()


def test_methods_are_compared_at_equal_bytes(eckart, llama, calibration, text, tmp_path):
    pytest.importorskip("matplotlib")
    other, picture = tmp_path / "other.txt", tmp_path / "a.png"
    other.write_text(text[::-1].replace("w", " w"))
    asked = ("compare", llama, calibration, other, "--calibration", calibration, *FEW, "--measured", 3, "--group", 16)
    found = eckart(*asked, "--bits", 12.8, "--bits", 6.1, "--plot", picture, "--json").json()
    rows = found["rows"]
    assert rows[0]["method"] == "as it is"
    assert {row["method"] for row in rows[1:]} == {
        *("low rank", "magnitude", "wanda", "nearest", "gptq", "nearest + low rank", "gptq + low rank"),
    }
    assert all(row["bits"] <= 12.8 and row["text.txt"] > 1 and row["other.txt"] > 1 for row in rows[1:])
    assert picture.stat().st_size > 1000
    assert "a budget is -1.0 bits" in eckart(*asked, "--bits", -1).mistake()
    assert eckart(*asked, "--bits", 6.1).out.splitlines()[0].split("\t")[:3] == ["method", "setting", "bits"]


def test_mistakes_are_answered_in_a_line(eckart, llama, calibration, tmp_path):
    out, empty = tmp_path / "out", tmp_path / "empty.txt"
    empty.write_text(" ")
    compress = ("compress", llama, "--calibration")
    assert "--output" in eckart(*compress, calibration).mistake(2)
    assert "the text is empty" in eckart(*compress, empty, "-o", out).mistake()
    assert "expected at least 1,024, one context" in eckart(*compress, calibration, "-o", out).mistake()
    assert "No such file" in eckart(*compress, tmp_path / "no.txt", "-o", out).mistake()
    assert "is no directory" in eckart("compress", tmp_path / "no", "--calibration", calibration, "-o", out).mistake()
    assert "keep is 2.0" in eckart(*compress, calibration, "-o", out, *FEW, "--keep", 2).mistake()
    assert "leave out --standalone" in eckart(*compress, calibration, "-o", out, "--dense", "--standalone").mistake(2)
    assert "no layer matches 'no'" in eckart(*compress, calibration, "-o", out, *FEW, "--layer", "no").mistake()
    assert "something else" in eckart(*compress, calibration, "-o", tmp_path, *FEW).mistake()
    assert "is no directory" in eckart("perplexity", tmp_path / "no", calibration).mistake()
    assert "stride is 30" in eckart("perplexity", llama, calibration, "--context", 24, "--stride", 30).mistake()
    assert not out.exists()
