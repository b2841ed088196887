"""Adapters merged into model directories, and extracted from them: models compute what the adapted ones do."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from eckart.nn.adapters.adapter import adapter_of, put_adapter  # noqa: E402
from eckart.nn.adapters.extract import extract_adapter  # noqa: E402
from eckart.nn.adapters.files import load_adapter, save_adapter  # noqa: E402
from eckart.nn.adapters.lora import add_lora, lora_parameters  # noqa: E402
from eckart.nn.adapters.merge import merge_directory  # noqa: E402
from eckart.nn.directory import compress_model, decompose_directory  # noqa: E402
from eckart.nn.language import load_model  # noqa: E402


def trained(folder, out, patterns=("*",), size=0.1, seed=1, **form):
    """An adapter with random updates, and the model that has them."""
    model = load_model(folder)
    add_lora(model, form.pop("rank", 4), 8.0, patterns, **form)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(model).values():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    save_adapter(adapter_of(model), out)
    return model


@torch.no_grad()
def logits(model, windows):
    return (model if isinstance(model, torch.nn.Module) else load_model(model))(windows).logits


def close(a, b):
    return float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


# Names of the embedding and the softmax of both models
TIED = {"llama": ("model.embed_tokens", "lm_head"), "gpt2": ("transformer.wte", "lm_head")}
WHICH = {"blocks": ("*",), "embedding": ("*", 0), "softmax": (1,), "both": (0, 1)}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize(
    "which, form",
    [
        ("blocks", {}),
        ("embedding", {"rslora": True}),
        ("softmax", {}),
        ("both", {"dora": True}),
        ("blocks", {"dora": True}),
    ],
)
def test_a_merged_model_computes_what_the_adapted_one_does(request, kind, which, form, windows, tmp_path):
    folder = request.getfixturevalue(kind)
    patterns = [TIED[kind][x] if isinstance(x, int) else x for x in WHICH[which]]
    expected = logits(trained(folder, tmp_path / "a", patterns, **form), windows)
    told = []
    made = merge_directory(folder, tmp_path / "a", tmp_path / "out", progress=lambda *x: told.append(x))
    assert told[-1] == ("merging", made["layers"], made["layers"])
    assert close(logits(tmp_path / "out", windows), expected)
    assert not close(logits(folder, windows), expected)
    assert made["untied"] == ([] if which == "blocks" else sorted(TIED[kind]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] == (which == "blocks")
    assert made["rounding"]["all"] == 0
    assert json.loads((tmp_path / "out" / "eckart.json").read_text()) == made
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a", "out"]
    if which == "softmax":  # the embedding is what it was
        name = f"{TIED[kind][0]}.weight"
        old, new = (load_file(x / "model.safetensors")[name] for x in (folder, tmp_path / "out"))
        assert torch.equal(old, new)


def test_a_model_in_several_files_is_merged_one_by_one(llama, windows, tmp_path, monkeypatch):
    expected = logits(trained(llama, tmp_path / "a", ("*", "embed_tokens")), windows)
    monkeypatch.setattr("eckart.nn.output._SHARD", 10_000)
    merge_directory(llama, tmp_path / "a", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert close(logits(tmp_path / "out", windows), expected)


def test_an_adapter_beside_the_base_is_not_added_again(llama, windows, tmp_path):
    shutil.copytree(llama, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("# A model\n")
    expected = logits(trained(llama, tmp_path / "a"), windows)
    for file in (tmp_path / "a").glob("adapter*"):
        shutil.copyfile(file, tmp_path / "base" / file.name)
    merge_directory(tmp_path / "base", tmp_path / "base", tmp_path / "out")
    assert close(logits(tmp_path / "out", windows), expected)
    assert not list((tmp_path / "out").glob("adapter*"))
    assert (tmp_path / "out" / "README.md").read_text().startswith("# A model\n\nThe adapter base was merged into 21")


def halved(folder, out, dtype):
    model = load_model(folder).to(dtype)
    model.save_pretrained(out)
    return out


def test_what_rounding_takes_is_said(llama, tmp_path):
    base = halved(llama, tmp_path / "half", torch.bfloat16)
    trained(llama, tmp_path / "a")
    trained(llama, tmp_path / "small", size=0.01)
    large, small = (merge_directory(base, tmp_path / x, tmp_path / "out")["rounding"] for x in ("a", "small"))
    assert 0 < large["all"] < 0.05
    assert small["all"] > 3 * large["all"]  # what is left of a small update in 16 bits is less
    assert small["worst"] >= small["all"]
    stored, exact = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    adapter, lost, changed = load_adapter(tmp_path / "small"), 0.0, 0.0
    for name in adapter.layers:
        W, delta = exact[f"{name}.weight"].float(), adapter.delta(name).dense()
        assert stored[f"{name}.weight"].dtype == torch.bfloat16
        lost += float((stored[f"{name}.weight"].float() - W - delta).square().sum())
        changed += float(delta.square().sum())
    assert small["all"] == pytest.approx((lost / changed) ** 0.5, rel=1e-3)


def test_what_cannot_be_merged_is_said_before_any_work(llama, gpt2, windows, tmp_path):
    trained(llama, tmp_path / "a")
    trained(llama, tmp_path / "huge", size=1e15)
    with pytest.raises(ValueError, match="which the network has not"):
        merge_directory(gpt2, tmp_path / "a", tmp_path / "out")
    compress_model(llama, tmp_path / "small", windows, keep=0.5, gradients=0)
    with pytest.raises(ValueError, match="is quantized or compressed, by eckart: start from the original"):
        merge_directory(tmp_path / "small", tmp_path / "a", tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds something else"):
        merge_directory(llama, tmp_path / "a", llama)
    with pytest.raises(FileNotFoundError, match=r"it has no adapter_config\.json"):
        merge_directory(llama, llama, tmp_path / "out")
    with pytest.raises(ValueError, match=r"does not fit torch\.float16"):
        merge_directory(halved(llama, tmp_path / "half", torch.float16), tmp_path / "huge", tmp_path / "out")
    strange = tmp_path / "strange"
    shutil.copytree(llama, strange)
    config = json.loads((strange / "config.json").read_text())
    for name in ("NoSuchModel", "os", 7, "AutoModel"):
        (strange / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        with pytest.raises(ValueError, match=r"config\.json has the architecture"):
            merge_directory(strange, tmp_path / "a", tmp_path / "out")
    (strange / "config.json").write_text(json.dumps(config))
    tensors = load_file(strange / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, strange / "model.safetensors")
    trained(llama, tmp_path / "tied", ("lm_head",))
    with pytest.raises(ValueError, match="is tied to a tensor that is stored with other numbers"):
        merge_directory(strange, tmp_path / "tied", tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: x for key, x in tensors.items() if key != name}, strange / "model.safetensors")
    with pytest.raises(ValueError, match=f"the weights have no '{name}', which LlamaForCausalLM needs"):
        merge_directory(strange, tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_merged_too(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "base")
    add_lora(model, 2, patterns=["query", "classifier", "word_embeddings"])
    for parameter in lora_parameters(model).values():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    save_adapter(adapter_of(model), tmp_path / "a")
    assert merge_directory(tmp_path / "base", tmp_path / "a", tmp_path / "out")["layers"] == 3
    merged = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, 30, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, atol=1e-5, rtol=1e-5)


# Extracting


def tuned(folder, out, names=("weight",), size=0.05):
    """A model with random changes of all tensors whose name ends so."""
    model = load_model(folder)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith(names) and parameter.ndim > 1:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(out)
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    return out


def test_extracted_at_full_rank_the_adapter_is_the_tuning(language_model, windows, tmp_path):
    other = tuned(language_model, tmp_path / "tuned")
    expected = logits(other, windows)
    adapter, report = extract_adapter(other, language_model, rank=64)
    assert not report["left_out"]
    model = load_model(language_model)
    put_adapter(model, adapter)
    assert close(logits(model, windows), expected)
    save_adapter(adapter, tmp_path / "a")
    merge_directory(language_model, tmp_path / "a", tmp_path / "out")
    assert close(logits(tmp_path / "out", windows), expected)
    assert not close(logits(language_model, windows), expected)


def test_what_was_trained_as_an_adapter_is_found_again(llama, windows, tmp_path):
    model = trained(llama, tmp_path / "a")
    merge_directory(llama, tmp_path / "a", tmp_path / "tuned")
    found, report = extract_adapter(tmp_path / "tuned", llama, rank=4)
    first = load_adapter(tmp_path / "a")
    assert found.layers.keys() == first.layers.keys()
    for name in found.layers:
        torch.testing.assert_close(found.delta(name).dense(), first.delta(name).dense(), atol=1e-6, rtol=1e-4)
        assert report["layers"][name]["kept"] > 1 - 1e-9
    again = load_model(llama)
    put_adapter(again, found)
    assert close(logits(again, windows), logits(model, windows))


def test_a_smaller_rank_is_the_truncated_svd_of_the_difference(llama, tmp_path):
    other = tuned(llama, tmp_path / "tuned")
    adapter, report = extract_adapter(other, llama, 3, patterns=["up_proj", "embed_tokens"], skip=["layers.0.*"])
    old, new = (load_file(x / "model.safetensors") for x in (llama, other))
    assert list(adapter.layers) == ["model.embed_tokens", *(f"model.layers.{i}.mlp.up_proj" for i in (1, 2))]
    assert "model.layers.0.mlp.up_proj.weight" in report["left_out"]
    for name, facts in report["layers"].items():
        D = new[f"{name}.weight"] - old[f"{name}.weight"]
        D = D.T if "embed" in name else D
        U, s, Vt = torch.linalg.svd(D, full_matrices=False)
        torch.testing.assert_close(adapter.delta(name).dense(), U[:, :3] * s[:3] @ Vt[:3], atol=1e-5, rtol=1e-3)
        assert facts == {"rank": 3, "kept": pytest.approx(float((s[:3] ** 2).sum() / (s**2).sum()), rel=1e-4)}


def test_with_moments_the_outputs_come_closest(llama, windows, tmp_path):
    other, name = tuned(llama, tmp_path / "tuned"), "model.layers.1.mlp.up_proj"
    found = decompose_directory(llama, windows, tmp_path / "work", gradients=0, keep_moments=True)
    plain, ours = (
        extract_adapter(other, llama, 3, moments=m, patterns=[name])[0] for m in (None, lambda x: found.moments(x))
    )
    R = found.moments(name)
    old, new = (load_file(x / "model.safetensors")[f"{name}.weight"].double() for x in (llama, other))

    def error(adapter):
        D = new - old - adapter.delta(name).dense().double()
        return float(torch.trace(D @ R @ D.T))

    assert error(ours) < 0.95 * error(plain)
    values, vectors = torch.linalg.eigh(R)
    s = torch.linalg.svdvals((new - old) @ (vectors * values.clamp_min(0).sqrt()))
    assert error(ours) == pytest.approx(float((s[3:] ** 2).sum()), rel=1e-4)


def test_what_an_adapter_cannot_hold_is_reported(llama, tmp_path):
    model = load_model(llama)
    model.model.norm.weight.data *= 1.5
    model.model.layers[0].self_attn.q_proj.weight.data += 0.1
    model.save_pretrained(tmp_path / "tuned")
    adapter, report = extract_adapter(tmp_path / "tuned", llama, 4)
    assert list(adapter.layers) == ["model.layers.0.self_attn.q_proj"]
    assert report["layers"]["model.layers.0.self_attn.q_proj"]["rank"] <= 4
    assert report["left_out"] == {"model.norm.weight": pytest.approx(0.5)}


def test_models_that_do_not_fit_are_refused(llama, gpt2, tmp_path):
    with pytest.raises(ValueError, match=r"is a GPT2LMHeadModel and .* a LlamaForCausalLM: it was not tuned from that"):
        extract_adapter(gpt2, llama, 4)
    with pytest.raises(ValueError, match="have the same numbers in every layer"):
        extract_adapter(llama, llama, 4)
    with pytest.raises(ValueError, match="rank is 0"):
        extract_adapter(llama, llama, 0)
    model = load_model(llama)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path / "more")
    with pytest.raises(ValueError, match="have vocabularies of 70 and 64 tokens: give the base"):
        extract_adapter(tmp_path / "more", llama, 4)
    config = json.loads((llama / "config.json").read_text()) | {"intermediate_size": 50}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"gate_proj.weight is \(50, 32\) in .*wide and \(48, 32\)"):
        extract_adapter(tmp_path / "wide", llama, 4)
