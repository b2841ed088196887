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
    from eckart.nn.adapter import adapter_of
    from eckart.nn.adapter_files import save_adapter
    from eckart.nn.language import load_model
    from eckart.nn.lora import add_lora, lora_parameters

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
