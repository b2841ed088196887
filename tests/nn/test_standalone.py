"""Compressed models that bring their code: transformers loads them where there is no eckart, and never with noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from eckart.nn.directory import compress_model, decompose_directory  # noqa: E402
from eckart.nn.hf_config import StandaloneConfig  # noqa: E402
from eckart.nn.language import load_model, load_tokenizer  # noqa: E402
from eckart.nn.linear import LowRankLinear  # noqa: E402
from eckart.nn.standalone import CODE  # noqa: E402
from eckart.nn.weights import METHOD  # noqa: E402

# What a stranger does, step by step. Messages of errors come back as they are.
STRANGER = r"""
import json, shutil, sys
sys.modules["eckart"] = None  # now `import eckart` is an ImportError
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

def load(folder, **more):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **more)

def error(action):
    try:
        action()
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"

def damaged(folder, change):
    copy = folder.with_name(folder.name + "-damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return error(lambda: load(copy))

windows = load_file(sys.argv[1])["windows"]
facts = {}
for folder in map(Path, sys.argv[2:]):
    model, found = load(folder, output_loading_info=True)
    again = folder.with_name(folder.name + "-again")
    model.save_pretrained(again)
    last = sorted(n for n in load_file(folder / "model.safetensors") if n.endswith(".right"))[-1]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with torch.no_grad():
        save_file({"first": model(windows).logits, "again": load(again)(windows).logits}, f"{folder}-logits")
    facts[folder.name] = {
        "layers": sum(type(x).__name__ == "LowRankLinear" for x in model.modules()),
        "kind": [type(model).__name__, type(model.config).__name__, model.config.model_type],
        "missing": sorted(found["missing_keys"]),
        "tied": tied,
        "tokens": AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w3 w4")["input_ids"],
        "written": model.generate(windows[:1, :4], max_new_tokens=3, do_sample=False).shape,
        "not trusted": error(lambda: AutoModelForCausalLM.from_pretrained(folder)),
        "a factor missing": damaged(folder, lambda t: t.pop(last)),
        "a factor of another shape": damaged(folder, lambda t: t.update({last: torch.ones(2, 2)})),
        "a norm missing": damaged(folder, lambda t: t.pop(next(n for n in t if "norm" in n or "ln_" in n))),
        "no permutation": damaged(folder, lambda t: t[last.replace("right", "order")].fill_(0)),
    }
print("\n" + json.dumps(facts))  # a question without an end may stand before it
"""


@pytest.fixture(scope="module")
def folders(llama, gpt2, windows, tmp_path_factory):
    """Llama and GPT-2, compressed in both forms: {kind: (usual directory, standalone directory)}."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for kind, source in (("llama", llama), ("gpt2", gpt2)):
        made[kind] = root / kind, root / f"{kind}-alone"
        for out, standalone in zip(made[kind], (False, True), strict=True):
            compress_model(source, out, windows, keep=0.6, gradients=2, standalone=standalone)
    return made


@pytest.fixture(scope="module")
def stranger(folders, windows, tmp_path_factory):
    """What happens to the standalone directories in a process without eckart."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("stranger")
    save_file({"windows": windows}, root / "windows")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, root / "windows", *(alone for _, alone in folders.values())],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_eckart_it_is_the_same_model_to_the_bit(folders, stranger, windows, kind):
    usual, alone = folders[kind]
    facts, computed = stranger[alone.name], load_file(f"{alone}-logits")
    expected = load_model(usual)(windows).logits
    assert torch.equal(computed["first"], expected)
    assert torch.equal(computed["again"], expected)
    assert facts["layers"] == sum(type(x) is LowRankLinear for x in load_model(usual).modules()) > 3
    assert facts["missing"] == []
    assert facts["tied"]
    name = {"llama": "Llama", "gpt2": "GPT2"}[kind]
    assert facts["kind"][0].startswith(name)
    assert facts["kind"][1:] == [f"{name}Config", METHOD]
    assert facts["tokens"] == load_tokenizer(usual)("w3 w4")["input_ids"]
    assert facts["written"] == [1, 7]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_eckart_nothing_is_noise(stranger, kind):
    facts = stranger[f"{kind}-alone"]
    assert "trust_remote_code=True" in facts["not trusted"]
    assert "ValueError: 1 weights are not in the files" in facts["a factor missing"]
    assert "ValueError: 1 weights are not in the files" in facts["a norm missing"]
    assert "RuntimeError: You set `ignore_mismatched_sizes` to `False`" in facts["a factor of another shape"]
    assert "is no permutation" in facts["no permutation"]


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_eckart_the_code_in_it_is_not_run(folders, windows, tmp_path, kind, trust):
    usual, alone = folders[kind]
    (alone / CODE).rename(alone / "elsewhere")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(alone, **trust)
    finally:
        (alone / "elsewhere").rename(alone / CODE)
    assert type(model).__module__.startswith("transformers.models.")
    assert model.config.model_type == kind
    expected = load_model(usual)(windows).logits
    assert torch.equal(model(windows).logits, expected)
    model.save_pretrained(tmp_path / "again")  # the usual form
    assert torch.equal(load_model(tmp_path / "again")(windows).logits, expected)


def test_it_is_ours_to_replace_and_not_to_compress_again(folders, llama, windows, tmp_path):
    _, alone = folders["llama"]
    with pytest.raises(ValueError, match="compressed already, by eckart"):
        decompose_directory(alone, windows, tmp_path / "work")
    out = tmp_path / "out"
    for standalone in (True, False):
        compress_model(llama, out, windows, keep=0.9, gradients=0, standalone=standalone)
        assert (out / CODE).exists() == standalone
        assert ("trust_remote_code" in (out / "README.md").read_text()) == standalone
    with pytest.raises(ValueError, match="leave out standalone=True, or dense=True"):
        compress_model(llama, tmp_path / "no", windows, dense=True, standalone=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "stored", [None, {}, {"model_type": "eckart"}, {"model_type": "unheard_of"}, {"model_type": 3}]
)
def test_a_config_that_says_no_kind_is_refused(stored):
    with pytest.raises(ValueError, match=r"low_rank\.model_type is .*, expected a kind"):
        StandaloneConfig.from_dict({"model_type": "eckart", "low_rank": stored})


def test_the_kind_is_the_method():
    assert StandaloneConfig.model_type == METHOD
