"""ONNX: the same logits in onnxruntime, for any batch and length, from factors that are still factors."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'eckart[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'eckart[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'eckart[onnx]'")

import eckart.nn.export  # noqa: E402
from eckart.nn.compress import compress  # noqa: E402
from eckart.nn.directory import compress_model  # noqa: E402
from eckart.nn.export import _quiet, _traced, export_model  # noqa: E402
from eckart.nn.language import load_model, load_tokenizer  # noqa: E402
from eckart.nn.linear import LowRankConv2d, LowRankLinear  # noqa: E402


@pytest.fixture(scope="module")
def traced(llama, gpt2, windows, tmp_path_factory):
    """{kind: (directory of its first block alone, compressed; what torch made of it)}: tracing takes seconds."""
    root = tmp_path_factory.mktemp("export")
    made = {}
    for kind, source in (("llama", llama), ("gpt2", gpt2)):
        one = transformers.AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=1)
        shutil.copytree(source, root / kind)
        one.save_pretrained(root / kind)
        compress_model(root / kind, root / f"{kind}-out", windows[:4], keep=0.5, gradients=0, pivoted=kind == "llama")
        made[kind] = root / f"{kind}-out", _traced(load_model(root / f"{kind}-out"), kind)
    return made


@pytest.fixture(params=["llama", "gpt2"])
def model(request, traced, monkeypatch):
    """One of them, with the tracing done."""
    folder, program = traced[request.param]
    monkeypatch.setattr(eckart.nn.export, "_traced", lambda model, name: program)
    return folder


def session_of(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def numbers_of(file):
    """Shapes of the tensors in a file."""
    tensors = onnx.load(file).graph.initializer
    return [tuple(x.dims) for x in tensors if x.data_type == onnx.TensorProto.FLOAT]


def test_onnxruntime_computes_the_same_for_every_shape(model, tmp_path):
    told = []
    facts = export_model(model, tmp_path / "out", progress=lambda *x: told.append(x))
    assert [stage for stage, _, _ in told] == ["loading", "tracing", "writing", "comparing"]
    assert 0 < facts["difference"] < 1e-4
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == facts
    assert facts["bytes_after"] == (tmp_path / "out" / "model.onnx").stat().st_size
    session, network = session_of(tmp_path / "out" / "model.onnx"), load_model(model)
    assert [x.name for x in (*session.get_inputs(), *session.get_outputs())] == [
        "input_ids",
        "attention_mask",
        "logits",
    ]
    for batch, length in ((1, 1), (1, 30), (3, 7), (5, 64)):
        tokens = torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(tokens)
        mask[-1, : length // 3] = 0
        (got,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        expected = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        assert got.shape == (batch, length, 64)
        torch.testing.assert_close(torch.from_numpy(got)[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
    assert load_tokenizer(tmp_path / "out")("w3 w4")["input_ids"] == load_tokenizer(model)("w3 w4")["input_ids"]


def test_factors_are_still_factors_and_nobody_is_told_where_they_were_made(model, tmp_path):
    export_model(model, tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    shapes = numbers_of(file)
    shapes = [shape for shape in shapes if len(shape) == 2]
    layers = [x for x in load_model(model).modules() if isinstance(x, LowRankLinear)]
    assert layers
    for layer in layers:
        for factor in (layer.left, layer.right):
            assert tuple(factor.shape) in shapes or tuple(factor.T.shape) in shapes
            shapes.remove(tuple(factor.shape) if tuple(factor.shape) in shapes else tuple(factor.T.shape))
    config = load_model(model).config
    embeddings = config.vocab_size * config.hidden_size * 2 + 64 * config.hidden_size  # tied ones twice; positions
    dense = [x for name, x in load_model(model).named_modules() if type(x).__name__ in ("Linear", "Conv1D")]
    left = sum(a * b for a, b in shapes) - sum(x.weight.numel() for x in dense[:-1])  # the last is tied
    assert left <= embeddings  # no product beside them
    assert b"site-packages" not in file.read_bytes()


def test_large_weights_are_in_a_file_of_their_own(model, tmp_path, monkeypatch):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    facts = export_model(model, tmp_path / "out")
    parts = [tmp_path / "out" / name for name in ("model.onnx", "model.onnx.data")]
    assert facts["bytes_after"] == sum(x.stat().st_size for x in parts)
    (tmp_path / "out").rename(tmp_path / "moved")
    tokens = torch.ones(1, 3, dtype=torch.int64).numpy()
    session_of(tmp_path / "moved" / "model.onnx").run(None, {"input_ids": tokens, "attention_mask": tokens})


def test_an_export_is_replaced_and_nothing_else_is(model, tmp_path):
    for _ in range(2):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(FileExistsError, match="something else than a model that eckart exported"):
        export_model(model, model)
    with pytest.raises(FileExistsError, match="is a file"):
        export_model(model, tmp_path / "out" / "model.onnx")
    assert load_model(model)


def test_what_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    export_model(model, tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_bytes()

    def full(*arguments, **keywords):
        raise OSError("No space left on device")

    monkeypatch.setattr(eckart.nn.export, "_MOST", 0)
    with pytest.raises(ValueError, match="in onnxruntime the logits differ by"):
        export_model(model, tmp_path / "out")
    monkeypatch.setattr("onnx_ir.save", full)
    with pytest.raises(OSError, match="cannot be written: No space"):
        export_model(model, tmp_path / "out")
    assert [x.name for x in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "export.json").read_bytes() == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{package} is not installed: pip install 'eckart\[onnx\]'$"):
        export_model(tmp_path, tmp_path / "out")


def test_any_network_that_was_compressed_is_exported_by_torch(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 24, 3, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(24 * 9, 32),
    ).eval()
    numbers = sum(x.numel() for x in network.parameters())
    compress(network, [torch.randn(16, 3, 8, 8)], keep=0.5, gradients=0, patterns=["2"])
    compress(network, [torch.randn(16, 3, 8, 8)], keep=0.5, gradients=0, patterns=["4"])
    assert [type(x) for x in network][2::2] == [LowRankConv2d, LowRankLinear]
    axes = ({0: torch.export.Dim("batch")},)
    with _quiet():
        program = torch.onnx.export(
            network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=axes, dynamo=True, verbose=False
        )
    program.save(tmp_path / "network.onnx")
    session, images = session_of(tmp_path / "network.onnx"), torch.randn(5, 3, 8, 8)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), network(images), atol=1e-4, rtol=1e-4)
    kept = sum(torch.Size(shape).numel() for shape in numbers_of(tmp_path / "network.onnx"))
    assert kept < 0.6 * numbers
