"""eckart export, as it is called."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx", reason="needs onnx: pip install 'eckart[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'eckart[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'eckart[onnx]'")


def test_a_model_is_exported_and_mistakes_are_answered_in_a_line(eckart, gpt2, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(gpt2, num_hidden_layers=1).save_pretrained(tmp_path / "model")
    answer = eckart("export", tmp_path / "model", "-o", tmp_path / "out", "--json")
    made = answer.json()
    assert answer.err == ""
    assert made["difference"] < 1e-4
    assert made["bytes_after"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
    assert "is no directory" in eckart("export", tmp_path / "no", "-o", tmp_path / "new").mistake()
    assert "something else" in eckart("export", gpt2, "-o", tmp_path / "model").mistake()
    assert "--output" in eckart("export", gpt2).mistake(2)
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": "unheard_of"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert "transformers cannot load it" in eckart("export", tmp_path / "model", "-o", tmp_path / "new").mistake()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model", "out"]
