"""eckart lora merge, extract, resize and add, as they are called."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture
def adapters(llama, tmp_path):
    """Two adapters of one model, with random updates of ranks 3 and 2."""
    from eckart.nn.adapters.adapter import adapter_of
    from eckart.nn.adapters.files import save_adapter
    from eckart.nn.adapters.lora import add_lora, lora_parameters
    from eckart.nn.language import load_model

    for name, rank in (("a", 3), ("b", 2)):
        model = load_model(llama)
        add_lora(model, rank, seed=rank)
        generator = torch.Generator().manual_seed(rank)
        for parameter in lora_parameters(model).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save_adapter(adapter_of(model), tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def test_merged_then_extracted_it_is_there_again(eckart, llama, adapters, text, tmp_path):
    merged = eckart("lora", "merge", llama, adapters[0], "-o", tmp_path / "merged", "--json").json()
    assert (merged["layers"], merged["untied"], merged["output"]) == (21, [], str(tmp_path / "merged"))
    asked = ("lora", "extract", tmp_path / "merged", llama, "-o", tmp_path / "found", "--rank", 8)
    found = eckart(*asked, "--json").json()
    assert (found["layers"], found["left_out"]) == (21, 0)
    assert found["kept_least"] > 1 - 1e-9
    (tmp_path / "text.txt").write_text(text)
    calibrated = ("--calibration", tmp_path / "text.txt", "--windows", 4, "--context", 24)
    again = eckart(*asked, *calibrated, "--layer", "up_proj", "--json").json()
    assert (again["layers"], again["left_out"]) == (3, 18)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a", "b", "found", "merged", "text.txt"]


def test_what_an_adapter_lacks_is_noted(eckart, llama, adapters, tmp_path):
    eckart("lora", "merge", llama, adapters[0], "-o", tmp_path / "merged", "--json").json()
    answer = eckart("lora", "extract", tmp_path / "merged", llama, "-o", tmp_path / "found", "--layer", "q_proj")
    assert answer.status == 0
    notes = answer.err.splitlines()
    assert notes[0].startswith("eckart: model.layers.0.self_attn.k_proj.weight was tuned too (by ")
    assert notes[3] == "eckart: and 15 more tensors"


def test_adapters_are_resized_and_added(eckart, adapters, tmp_path):
    one, two = adapters
    resized = eckart("lora", "resize", one, "-o", tmp_path / "out", "--rank", 2, "--json").json()
    assert (resized["ranks"], resized["layers"]) == ([2, 2], 21)
    assert 0.5 < resized["kept_least"] < 1
    kept = eckart("lora", "resize", one, "-o", tmp_path / "out", "--energy", 0.9, "--json").json()
    assert kept["kept_least"] >= 0.9
    total = eckart("lora", "add", one, two, "-o", tmp_path / "out", "--weights", "0.5,-1", "--json").json()
    assert total["ranks"] == [5, 5]
    table = eckart("lora", "add", one, two, "-o", tmp_path / "out", "--rank", 1)
    assert table.status == 0
    assert "ranks\t1, 1" in table.out
    made = json.loads((tmp_path / "out" / "eckart.json").read_text())
    assert (made["added"], made["rank"]) == (["a", "b"], 1)


def test_mistakes_are_answered_with_one_line(eckart, llama, gpt2, adapters, tmp_path):
    one, out = adapters[0], ("-o", tmp_path / "out")
    assert "which the network has not" in eckart("lora", "merge", gpt2, one, *out).mistake()
    assert "is no directory of an adapter" in eckart("lora", "merge", llama, llama, *out).mistake()
    assert "holds something else" in eckart("lora", "merge", llama, one, "-o", llama).mistake()
    assert "it was not tuned from that" in eckart("lora", "extract", gpt2, llama, *out).mistake()
    assert "the same numbers" in eckart("lora", "extract", llama, llama, *out).mistake()
    assert "give one of --rank and --energy" in eckart("lora", "resize", one, *out).mistake(2)
    assert "energy is 2.0, expected a share" in eckart("lora", "resize", one, *out, "--energy", 2).mistake()
    assert "--weights is 'half'" in eckart("lora", "add", one, *out, "--weights", "half").mistake(2)
    assert "1 adapters and 2 weights" in eckart("lora", "add", one, *out, "--weights", "1,2").mistake()
    assert "No such command" in eckart("lora", "trian").mistake(2)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def examples(tmp_path):
    rows = [{"a": f"w{10 + i % 9} w{10 + i % 7}", "b": 40 + i % 2, "split": "ab"[i % 5 == 0]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_an_adapter_is_trained_and_drawn(eckart, llama, examples, tmp_path):
    pytest.importorskip("matplotlib")
    asked = ("lora", "train", llama, examples, "--prompt", "{a}", "--completion", "w{b}", "--context", 24, "--lr", 0.01)
    picture = ("--plot", tmp_path / "losses.png")
    made = eckart(*asked, "-o", tmp_path / "a", "--rank", 4, "--rank-of", "q_proj=2", *picture, "--json").json()
    assert (made["examples"], made["held_out"], made["left_out"]) == (57, 3, 0)
    assert made["validation_loss"][1] < made["validation_loss"][0]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], set(config["rank_pattern"].values())) == (4, {2})
    assert (tmp_path / "losses.png").stat().st_size > 5000
    merged = eckart("lora", "merge", llama, tmp_path / "a", "-o", tmp_path / "m", "--json").json()
    assert merged["layers"] == 21
    split = ("--split", "a", "--validation-split", "b", "--limit", 20)
    full = eckart(*asked, "-o", tmp_path / "full", *split, "--full", "--json").json()
    assert (full["examples"], full["held_out"]) == (20, 12)
    assert (tmp_path / "full" / "model.safetensors").exists()


def test_what_cannot_be_trained_is_answered_with_one_line(eckart, llama, examples, tmp_path):
    asked = ("lora", "train", llama, examples, "-o", tmp_path / "a", "--context", 24)
    assert "give patterns that make a prompt" in eckart(*asked).mistake()
    asked += ("--prompt", "{a}", "--completion", "w{b}")
    assert "expected NAME=RANK" in eckart(*asked, "--rank-of", "q_proj").mistake(2)
    assert "no layer that is adapted matches" in eckart(*asked, "--rank-of", "x=2").mistake()
    assert "pictures are .png, .svg or .pdf" in eckart(*asked, "--plot", "a.txt").mistake(2)
    assert "there is no such directory" in eckart(*asked, "--plot", tmp_path / "b" / "a.png").mistake(2)
    assert "would be trained on too" in eckart(*asked, "--test-split", "a").mistake(2)
    assert "--full trains all weights: leave out --dora" in eckart(*asked, "--full", "--dora").mistake(2)
    assert "has no rows of the split 'c'" in eckart(*asked, "--split", "c").mistake()
    assert "reads at most 64 tokens" in eckart(*asked[:-5], 65, *asked[-4:]).mistake()
    assert not (tmp_path / "a").exists()


def test_the_frontier_is_told_and_drawn(eckart, llama, examples, text, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text(text)
    asked = ("lora", "frontier", llama, examples, "--prompt", "{a}", "--completion", "w{b}", "--context", 24)
    asked += ("--knew", tmp_path / "text.txt", "--knew-windows", 2, "-o", tmp_path / "out")
    runs = ("--ranks", 2, "--lrs", "1e-3,1e-2", "--full-lrs", "1e-3")
    made = eckart(*asked, *runs, "--json").json()
    assert [row["method"] for row in made["rows"]] == ["base", "rank 2", "rank 2", "all weights"]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "- **all weights** learned most at the rate 0.001: accuracy " in page
    assert page.count("\n|") == 6
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 5000
    again = eckart(*asked, *runs)
    assert (again.status, again.out) == (0, page + "\n"), "what is there is not run again"
    assert "expected numbers above 0 like 4,32" in eckart(*asked, "--ranks", "x").mistake(2)
    assert "--held is 0" in eckart(*asked, "--held", 0).mistake(2)
    assert "holds something else" in eckart(*asked[:-1], llama).mistake()
