"""Compressed models on disk: transformers loads them, they compute what was promised, and what is wrong is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from eckart.nn.calibrate import Decomposition  # noqa: E402
from eckart.nn.directory import compress_model, planned_bytes, work_beside  # noqa: E402
from eckart.nn.language import load_model, load_tokenizer  # noqa: E402
from eckart.nn.linear import LowRankLinear  # noqa: E402
from eckart.nn.plan import RankPlan  # noqa: E402


@pytest.fixture
def compressed(language_model, windows, tmp_path):
    compress_model(language_model, tmp_path / "out", windows, keep=0.6, gradients=3)
    return tmp_path / "out"


@pytest.fixture
def compressed_llama(llama, windows, tmp_path):
    compress_model(llama, tmp_path / "llama_out", windows, keep=0.6, gradients=1)
    return tmp_path / "llama_out"


def logits(folder, windows):
    return load_model(folder)(windows).logits


def test_it_is_smaller_near_the_original_and_said_to_be_so(language_model, windows, tmp_path):
    told = []
    found = compress_model(
        language_model, tmp_path / "out", windows, keep=0.6, gradients=3, progress=lambda *x: told.append(x)
    )
    assert 0.55 < found["keep"] <= 0.6
    assert found["keep"] < found["keep_of_model"] < 1
    assert found["bytes_after"] < found["bytes_before"]
    assert (
        found["layers"]
        == sum(type(x) is LowRankLinear for x in load_model(tmp_path / "out").modules()) + (found["as_they_are"])
    )
    certificate = json.loads((tmp_path / "out" / "eckart.json").read_text())
    assert certificate["predicted_loss"] == found["predicted_loss"] > 0
    assert {stage for stage, _, _ in told} == {"reading inputs", "decomposing", "writing"}
    assert not work_beside(tmp_path / "out").exists()
    before, after = logits(language_model, windows), logits(tmp_path / "out", windows)
    assert 0 < (before - after).square().mean() < 0.7 * before.square().mean()


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_size_is_known_before_it_is_written(language_model, windows, tmp_path, pivoted, dtype):
    load_model(language_model).to(dtype).save_pretrained(tmp_path / "model")
    model, out, work = tmp_path / "model", tmp_path / "out", tmp_path / "work"
    made = compress_model(model, out, windows, keep=0.6, gradients=1, pivoted=pivoted, work=work)
    found = Decomposition(work)
    plan = RankPlan.load(out / "plan.json", found.layers)
    headers = [
        (file.stat().st_size - sum(x.nbytes for x in load_file(file).values()))
        for file in (out / "model.safetensors", model / "model.safetensors")
    ]
    assert planned_bytes(model, found, plan) == made["bytes_after"] - headers[0] + headers[1]


def test_the_card_says_what_it_is_and_keeps_the_original_one(llama, windows, tmp_path):
    source = tmp_path / "Small-1"
    shutil.copytree(llama, source)
    (source / "README.md").write_text("Licence: mine")
    found = compress_model(source, tmp_path / "out", windows, keep=0.6, gradients=1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "Small-1"' in card
    assert "import eckart" in card
    assert f"{found['predicted_loss']:.3g} nats a token" in card
    assert (tmp_path / "out" / "README-original.md").read_text() == "Licence: mine"


def test_all_kept_is_the_original_to_the_bit(language_model, windows, tmp_path):
    compress_model(language_model, tmp_path / "out", windows, keep=1.0, gradients=0)
    assert torch.equal(logits(language_model, windows), logits(tmp_path / "out", windows))


def test_multiplied_out_it_computes_the_same_and_needs_no_eckart(language_model, windows, tmp_path, compressed):
    compress_model(language_model, tmp_path / "dense", windows, keep=0.6, gradients=3, dense=True)
    torch.testing.assert_close(logits(compressed, windows), logits(tmp_path / "dense", windows), atol=1e-3, rtol=1e-3)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not any(type(x) is LowRankLinear for x in load_model(tmp_path / "dense").modules())


def test_as_factors_it_computes_the_same_in_more_numbers(language_model, windows, tmp_path):
    plain = compress_model(language_model, tmp_path / "plain", windows, keep=0.6, gradients=3, pivoted=False)
    assert plain["pivoted"] is False
    pivoted = compress_model(language_model, tmp_path / "pivoted", windows, keep=0.6, gradients=3)
    assert plain["predicted_loss"] > pivoted["predicted_loss"]
    layers = [x for x in load_model(tmp_path / "plain").modules() if type(x) is LowRankLinear]
    assert layers
    assert not any(x.pivoted for x in layers)


@pytest.mark.parametrize("first", ["eckart", "transformers"])
def test_plain_transformers_loads_it_after_import_eckart(compressed_llama, first):
    second = {"eckart": "transformers", "transformers": "eckart"}[first]
    code = f"""
import {first}, {second}, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(compressed_llama)!r})
print(sum(type(x).__name__ == "LowRankLinear" for x in model.modules()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 3


def test_saved_again_by_transformers_it_is_the_same(compressed, windows, tmp_path):
    model = load_model(compressed)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(compressed, windows), logits(tmp_path / "again", windows))


def test_a_plan_is_edited_and_passed_back(language_model, windows, compressed, tmp_path):
    plan = json.loads((compressed / "plan.json").read_text())
    name = next(n for n, x in plan["layers"].items() if x["rank"] and x["rank"] > 2)
    plan["layers"][name]["rank"] = 2
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    compress_model(language_model, tmp_path / "b", windows, plan=tmp_path / "plan.json", gradients=3)
    assert load_model(tmp_path / "b").get_submodule(name).rank == 2
    for change, message in [
        (lambda x: x["layers"].pop(name), "is in the network only"),
        (lambda x: x["layers"].update(more={"rank": 1}), "more is in the plan only"),
        (lambda x: x["layers"][name].update(rank=10**6), "expected null"),
        (lambda x: x["layers"][name].update(rank=True), "rank of .* is True"),
        (lambda x: x.update(pivoted="yes"), "pivoted is 'yes'"),
        (lambda x: x.pop("layers"), "is no plan of ranks"),
    ]:
        wrong = json.loads((tmp_path / "plan.json").read_text())
        change(wrong)
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            compress_model(language_model, tmp_path / "c", windows, plan=tmp_path / "wrong.json", gradients=3)
    assert not (tmp_path / "c").exists()


def test_weights_of_16_bits_stay_so(language_model, windows, tmp_path):
    model = load_model(language_model).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    compress_model(tmp_path / "half", tmp_path / "out", windows, keep=0.6, gradients=2)
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in kept.values()} == {torch.bfloat16, torch.int32}
    assert logits(tmp_path / "out", windows).isfinite().all()


def test_shards_are_read_and_written(language_model, windows, tmp_path, monkeypatch, compressed):
    load_model(language_model).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    monkeypatch.setattr("eckart.nn.output._SHARD", 30_000)
    compress_model(tmp_path / "parts", tmp_path / "out", windows, keep=0.6, gradients=3)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    torch.testing.assert_close(logits(compressed, windows), logits(tmp_path / "out", windows))


def test_a_work_folder_serves_every_budget(language_model, windows, tmp_path):
    told = []
    for keep in (0.9, 0.5):
        told.clear()
        compress_model(
            language_model,
            tmp_path / f"{keep}",
            windows,
            keep=keep,
            gradients=2,
            work=tmp_path / "work",
            progress=lambda *x: told.append(x[0]),
        )
    assert "reading inputs" not in told
    assert (tmp_path / "work").exists()
    compress_model(language_model, tmp_path / "c", windows[:5], gradients=2, work=tmp_path / "work")  # another input


# What is wrong is said, and nothing is left behind


def damaged(llama, tmp_path, change):
    folder = tmp_path / "damaged"
    shutil.copytree(llama, folder)
    change(folder)
    return folder


def edit_json(name, change):
    def edit(folder):
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return edit


def edit_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def first_matrix(tensors):
    return next(name for name, x in sorted(tensors.items()) if x.ndim == 2 and ".0." in name)


@pytest.mark.parametrize(
    "change, message",
    [
        (edit_weights(lambda t: t[first_matrix(t)].fill_(torch.nan)), "has a value that is not finite"),
        (edit_weights(lambda t: t.pop(first_matrix(t))), "the weights have no"),
        (edit_weights(lambda t: t.update({first_matrix(t): torch.ones(3, 3)})), r"has the shape \(3, 3\), expected"),
        (edit_json("config.json", lambda c: c.update(model_type="unheard_of")), "no causal language model"),
        (edit_json("config.json", lambda c: c.update(quantization_config={"quant_method": "gptq"})), "by gptq"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "its weights are pickled"),
    ],
)
def test_a_model_that_is_wrong_is_refused(llama, windows, tmp_path, change, message):
    folder = damaged(llama, tmp_path, change)
    with pytest.raises((ValueError, OSError), match=message):
        compress_model(folder, tmp_path / "out", windows, gradients=1)
    assert not (tmp_path / "out").exists()


def test_a_budget_that_cannot_be_met_is_refused_and_may_be_asked_again(llama, windows, tmp_path):
    with pytest.raises(ValueError, match=r"keep is 0\.01, and the least ranks take"):
        compress_model(llama, tmp_path / "out", windows, keep=0.01, gradients=1)
    with pytest.raises(ValueError, match=r"keep is 1\.5, expected a share"):
        compress_model(llama, tmp_path / "out", windows, keep=1.5, gradients=1)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(llama, windows, tmp_path, monkeypatch):
    from eckart.nn import output

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="too little space"):
        compress_model(llama, tmp_path / "out", windows, gradients=1)
    monkeypatch.undo()

    def fail(*arguments):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(output, "save_file", fail)
    with pytest.raises(OSError, match="cannot be written: No space left"):
        compress_model(llama, tmp_path / "out", windows, gradients=1)
    assert sorted(x.name for x in tmp_path.iterdir()) == [".out.eckart-work"]  # to go on from


def test_what_is_not_ours_is_not_replaced(llama, windows, tmp_path, compressed_llama):
    compress_model(llama, compressed_llama, windows, keep=0.9, gradients=1)  # a compressed model is
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("important")
    with pytest.raises(FileExistsError, match="something else than what eckart wrote"):
        compress_model(llama, other, windows, gradients=1)
    with pytest.raises(FileExistsError, match="is a file"):
        compress_model(llama, other / "thesis.tex", windows, gradients=1)
    assert (other / "thesis.tex").read_text() == "important"


def test_a_work_folder_that_is_not_ours_is_left_alone(llama, windows, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "my-weights.safetensors").write_text("important")
    with pytest.raises(FileExistsError, match="holds something else than decomposed layers"):
        compress_model(llama, tmp_path / "out", windows, gradients=1, work=work)
    assert (work / "my-weights.safetensors").read_text() == "important"


@pytest.mark.parametrize(
    "change, message",
    [
        (edit_weights(lambda t: t.pop(next(n for n in t if n.endswith(".left")))), "left is not there in the files"),
        (
            edit_weights(lambda t: t.update({next(n for n in t if n.endswith(".right")): torch.ones(2, 2)})),
            r"right is \(2, 2\) in the files",
        ),
        (edit_weights(lambda t: t[next(n for n in t if n.endswith(".order"))].fill_(0)), "is no permutation"),
        (edit_json("config.json", lambda c: c["quantization_config"]["ranks"].update(nothing=1)), "no such layer"),
        (
            edit_json("config.json", lambda c: c["quantization_config"].update(ranks={"x": -1})),
            "is not a number for each layer",
        ),
        (edit_json("config.json", lambda c: c["quantization_config"].update(format_version=2)), "update eckart"),
        (edit_json("config.json", lambda c: c.pop("quantization_config")), "weights are not in the files"),
    ],
)
def test_a_compressed_model_that_is_wrong_is_refused(compressed_llama, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_model(damaged(compressed_llama, tmp_path, change))


def test_a_tokenizer_comes_along(compressed_llama, llama):
    assert load_tokenizer(compressed_llama)("w3 w4")["input_ids"] == load_tokenizer(llama)("w3 w4")["input_ids"]
