"""Measured weights of layers are what was measured over what was predicted, and they move ranks."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eckart.nn.directory import compress_model, decompose_directory  # noqa: E402
from eckart.nn.language import divergence, load_model  # noqa: E402
from eckart.nn.plan import plan_ranks  # noqa: E402
from eckart.nn.weigh import measured_weights  # noqa: E402


@torch.no_grad()
def test_a_weight_is_the_measured_divergence_over_the_predicted(llama, windows, tmp_path):
    found = decompose_directory(llama, windows, tmp_path / "work", gradients=4)
    network = load_model(llama)
    weights = measured_weights(network, found, windows[0], keep=0.6)
    assert weights.keys() == found.layers.keys()
    name = "model.layers.1.mlp.up_proj"
    layer = network.get_submodule(name)
    before, W = network(windows[:1]).logits, layer.weight.data
    m, n = W.shape
    rank = max(k for k in range(n) if k * (m + n - k) <= 0.6 * m * n)
    layer.weight.data = found.cut(name, rank)[0].dense()
    expected = float(divergence(network(windows[:1]).logits, before)) / found.layers[name].losses[rank]
    assert weights[name] == pytest.approx(expected, rel=1e-4)
    assert torch.equal(
        network.get_submodule("model.layers.0.mlp.up_proj").weight,
        load_model(llama).get_submodule("model.layers.0.mlp.up_proj").weight,
    )
    with pytest.raises(ValueError, match="keep is 1"):
        measured_weights(network, found, windows[0], keep=1)


def test_a_heavier_layer_keeps_more(llama, windows, tmp_path):
    layers = decompose_directory(llama, windows, tmp_path / "work", gradients=4).layers
    name = "model.layers.1.mlp.up_proj"
    light, heavy = (plan_ranks(layers, 0.6, weights=dict.fromkeys(layers, 1.0) | {name: w}) for w in (0.1, 10.0))
    assert light.layers[name].numbers < heavy.layers[name].numbers


def test_weights_are_measured_once_a_folder(llama, windows, tmp_path):
    asked = {"gradients": 2, "work": tmp_path / "work", "weigh": 16}
    told = []
    for keep in (0.6, 0.8):
        told.append(set())
        compress_model(llama, tmp_path / "a", windows, keep, progress=lambda stage, *_: told[-1].add(stage), **asked)
    assert ["weighing layers" in stages for stages in told] == [True, False]
    assert json.loads((tmp_path / "a" / "eckart.json").read_text())["weighed"] == 16
    compress_model(llama, tmp_path / "a", windows[1:], 0.8, progress=lambda stage, *_: told[-1].add(stage), **asked)
    assert "weighing layers" in told[-1]  # another input
