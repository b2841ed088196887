"""The trade of learning and forgetting: every run is there once, the table says what was measured."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eckart.nn.adapters.examples import Example, pack  # noqa: E402
from eckart.nn.adapters.finetune import mean_loss  # noqa: E402
from eckart.nn.adapters.frontier import at_equal_learning, figure_of, runs_of, trade  # noqa: E402
from eckart.nn.adapters.learned import learned  # noqa: E402
from eckart.nn.language import load_model, perplexity  # noqa: E402


def tasks(first, count):
    """An answer that is one of two, after its prompt."""
    return [
        Example([10 + i % 9, 20 + i % 7, 40 + i % 2, 2], [False, False, True, True])
        for i in range(first, first + count)
    ]


@pytest.fixture
def asked(llama, windows, tmp_path):
    return (llama, tasks(0, 40), tasks(40, 12), windows[:2], runs_of([2], [1e-2], [1e-3]), tmp_path / "out")


def test_rows_say_what_was_learned_and_forgotten(asked, llama, windows):
    base, rank, full = rows = trade(*asked, context=24)
    model = load_model(llama)
    assert base["loss"] == pytest.approx(mean_loss(model, pack(asked[2], 24)[0]))
    assert base["known_loss"] == pytest.approx(perplexity(model, windows[:2].flatten(), 24).loss)
    assert (base["rise"], base["trained_numbers"], base["lr"]) == (0, 0, None)
    assert full["trained_numbers"] == model.num_parameters() > rank["trained_numbers"] > 0
    assert rank["loss"] < base["loss"]
    assert full["loss"] < base["loss"]
    for row in rows:
        assert row["rise"] == pytest.approx(row["known_loss"] - base["known_loss"])
    assert [row["method"] for row in rows] == ["base", "rank 2", "all weights"]


def test_what_is_there_is_not_run_again(asked):
    whole = trade(*asked, context=24)
    file = asked[-1] / "runs.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1] + "\n")
    told = []
    again = trade(*asked, context=24, progress=lambda stage, *_: told.append(stage))
    assert all(stage.startswith("2 of 2, all weights") for stage in told)
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in whole]
    told.clear()
    trade(*asked, context=24, epochs=2, progress=lambda stage, *_: told.append(stage))
    assert told[-1].startswith("2 of 2"), "other settings are other runs"
    assert len(file.read_text().splitlines()) == 3 + 3
    before = file.read_text() + '{"a": 1}\n'
    file.write_text(before)
    with pytest.raises(FileExistsError, match="of something else"):
        trade(*asked, context=24)
    assert file.read_text() == before


def test_a_rate_that_is_too_large_ends_its_run_and_no_other(asked):
    base, wild, tame = trade(*asked[:4], runs_of([2], [1e30, 1e-3], []), asked[-1], context=24)
    assert wild == {"method": "rank 2", "rank": 2, "lr": 1e30}
    assert tame["loss"] < base["loss"]
    (compared,) = at_equal_learning([base, wild, tame])
    assert compared["best"] == tame


def test_accuracy_is_for_few_answers_after_prompts(llama, windows):
    model = load_model(llama)
    assert learned(model, tasks(0, 6), None, 24).keys() == {"loss", "accuracy"}
    texts = [Example(x.tokens, [True] * 4) for x in tasks(0, 6)]
    assert learned(model, texts, windows[:1], 24).keys() == {"loss", "known_loss"}
    many = [Example([9, 20 + i], [False, True]) for i in range(11)]
    assert learned(model, many, None, 24).keys() == {"loss"}
    chats = [Example([9, 20, 9, 21 + i], [False, True, False, True]) for i in range(2)]
    assert learned(model, chats, None, 24).keys() == {"loss"}
    assert learned(model, [], None, 24) == {}


def test_methods_are_compared_where_they_learned_as_much():
    rows = [{"method": "base", "loss": 9.0, "rise": 0.0}]
    rows += [{"method": "a", "loss": x, "rise": y} for x, y in ((3.0, 0.1), (2.0, 0.4))]
    rows += [{"method": "b", "loss": x, "rise": y} for x, y in ((1.0, 0.9), (1.9, 0.3), (2.5, 0.0))]
    assert figure_of(rows) == ("loss", False)
    a, b = at_equal_learning(rows)
    assert (a["best"]["loss"], a["equal"]["loss"]) == (2.0, 2.0)
    assert (b["best"]["loss"], b["equal"]["rise"]) == (1.0, 0.3)
