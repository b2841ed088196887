"""Laws of calibration and compression: what is predicted is what is measured, however the work was divided."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reference.calibration import passed_through  # noqa: E402
from torch import nn  # noqa: E402

from eckart.nn.blocks import LanguageBlocks, WholeNetwork, drawn_label_loss  # noqa: E402
from eckart.nn.calibrate import Decomposition, decompose  # noqa: E402
from eckart.nn.compress import compress, compressed_tensors, low_rank_layers  # noqa: E402
from eckart.nn.plan import plan_ranks  # noqa: E402
from eckart.nn.surgery import replace_layer  # noqa: E402

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def small_network(seed, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20, bias), nn.Tanh(), nn.Linear(20, 7, bias))


def batches_of(seed, count=3, size=12, rows=64):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=rng) * torch.linspace(0.1, 2, size)
    return [torch.randn(rows, size, generator=rng) @ mix + 1 for _ in range(count)]


def matrix_at(found, name, rank):
    factors, _ = found.cut(name, rank)
    return factors.dense().double()


@few
@given(seed=seeds, bias=st.booleans())
def test_the_predicted_error_of_a_layer_is_the_measured_one(seed, bias, tmp_path_factory):
    network, batches = small_network(seed, bias), batches_of(seed)
    found = decompose(WholeNetwork(network), batches, tmp_path_factory.mktemp("work"), gradients=0, damping=(0, 0))
    inputs = passed_through(network, ["0", "2"], lambda f: [f(x) for x in batches])
    for name, layer in found.layers.items():
        x, dense = inputs[name][0], network.get_submodule(name)
        for rank in range(len(layer.squares) + 1):
            plan = plan_ranks({name: layer}, 1.0)
            plan.layers[name] = type(plan.layers[name])(layer.shape, rank, 0, 0.0)
            bias_now = dense.bias.detach() if bias else None
            parts = compressed_tensors(dense.weight.detach(), bias_now, found, name, type(plan)(plan.layers, False))
            y = x @ (parts["left"] @ parts["right"]).double().T + (parts["bias"].double() if bias else 0)
            before = x @ dense.weight.detach().double().T + (dense.bias.detach().double() if bias else 0)
            measured = float((y - before).square().sum() / len(x) / 2)
            assert measured == pytest.approx(layer.losses[rank], rel=1e-4, abs=1e-7 * layer.losses[0])


@few
@given(seed=seeds)
def test_the_corrected_bias_never_loses(seed, tmp_path_factory):
    network, batches = small_network(seed), batches_of(seed)
    found = decompose(WholeNetwork(network), batches, tmp_path_factory.mktemp("work"), gradients=0)
    inputs = passed_through(network, ["0", "2"], lambda f: [f(x) for x in batches])
    for name, layer in found.layers.items():
        x, dense = inputs[name][0], network.get_submodule(name)
        W, b = dense.weight.detach().double(), dense.bias.detach().double()
        for rank in range(len(layer.squares)):
            plan = plan_ranks({name: layer}, 1.0)
            plan.layers[name] = type(plan.layers[name])(layer.shape, rank, 0, 0.0)
            corrected = compressed_tensors(dense.weight.detach(), dense.bias.detach(), found, name, plan)["bias"]
            lost = (W - matrix_at(found, name, rank)) @ x.T
            with_it = (lost - (corrected.double() - b)[:, None]).square().sum()
            assert with_it <= lost.square().sum() * (1 + 1e-6) + 1e-9


def test_the_metric_is_the_mean_product_of_inputs_and_of_gradients(tmp_path):
    """For one layer and a linear loss, the predicted loss of cutting it all is the one that the definition gives."""
    network, batches = nn.Sequential(nn.Linear(6, 5, bias=False)), batches_of(0, size=6)
    found = decompose(WholeNetwork(network), batches, tmp_path, gradients=2, seed=3, damping=(0, 0))

    def draw(f):
        for j, x in enumerate(batches[:2]):
            generator = torch.Generator().manual_seed(3 * 1_000_003 + j)
            out = f(x)
            (out * torch.randn(out.shape, generator=generator)).sum().backward()

    g = passed_through(network, ["0"], draw)["0"][1]
    x = torch.cat(batches).double()
    L, R, W = g.T @ g / len(g), x.T @ x / len(x), network[0].weight.detach().double()
    assert found.layers["0"].losses[0] == pytest.approx(float(torch.trace(L @ W @ R @ W.T)) / 2, rel=1e-5)
    torch.testing.assert_close(L, torch.eye(5, dtype=torch.float64), atol=0.5, rtol=0)  # Gaussian draws: about 1


@few
@given(seed=seeds)
def test_gradients_spend_the_budget_where_the_output_feels_it(seed):
    batches = batches_of(seed, rows=256)
    errors = {}
    for gradients in (0, 3):
        network = small_network(seed)
        with torch.no_grad():
            network[2].weight[:] *= torch.logspace(0, -2, 20)  # most hidden units hardly matter
        before = [network(x).detach() for x in batches]
        compress(network, batches, 0.6, gradients=gradients)
        after = [network(x).detach() for x in batches]
        errors[gradients] = sum(float((a - b).square().sum()) for a, b in zip(before, after, strict=True))
    assert errors[3] < errors[0] * 1.05


def test_full_budget_changes_nothing():
    network, batches = small_network(0), batches_of(0)
    before = network(batches[0])
    plan = compress(network, batches, 1.0)
    assert plan.loss == 0
    torch.testing.assert_close(network(batches[0]), before, atol=0, rtol=0)


def test_more_kept_is_never_worse_and_never_larger_than_asked(tmp_path):
    network, batches = small_network(1), batches_of(1)
    found = decompose(WholeNetwork(network), batches, tmp_path)
    plans = [plan_ranks(found.layers, keep) for keep in np.linspace(0.3, 1, 30)]
    assert all(plan.keep <= keep + 1e-12 for plan, keep in zip(plans, np.linspace(0.3, 1, 30), strict=True))
    losses = [plan.loss for plan in plans]
    assert all(b <= a + max(losses) * 0.05 for a, b in itertools.pairwise(losses))
    assert losses[-1] == 0 < losses[0]


def test_convolutions_are_compressed_and_counted_at_every_place():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2), nn.Flatten()
    ).eval()
    images = [torch.randn(8, 3, 9, 9) for _ in range(2)]
    before = network(images[0]).detach()
    plan = compress(network, images, 0.7)
    assert "LowRankConv2d" in {type(x).__name__ for x in network}
    error = (network(images[0]).detach() - before).square().sum() / 8 / 2
    assert 0.3 * plan.loss < error < 3 * plan.loss
    assert error < 0.3 * before.square().sum() / 8 / 2


def test_a_mapping_a_tuple_and_a_tensor_are_inputs():
    x = batches_of(0)[0]
    for batch in (x, (x,), {"input": x}):
        compress(small_network(0), [batch], 0.8)


# Language models, a block at a time


def directory_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_block_by_block_is_the_whole_at_once(language_model, windows, tmp_path):
    blocks = LanguageBlocks(language_model)
    found = decompose(blocks, list(windows[:, None]), tmp_path / "a", gradients=3)
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    model.requires_grad_(False)

    def draw(output, generator):
        return drawn_label_loss(output.logits[0], generator)

    inside = [name for name in dict(model.named_modules()) if name in found.layers]
    batches = [{"input_ids": w[None], "use_cache": False} for w in windows]
    whole = WholeNetwork(model, draw)
    whole.samples = lambda batch: batch["input_ids"].numel()
    other = decompose(whole, batches, tmp_path / "b", patterns=inside, gradients=3)
    assert list(other.layers) == list(found.layers)
    for name, layer in found.layers.items():
        np.testing.assert_allclose(layer.losses, other.layers[name].losses, rtol=1e-3, atol=1e-4 * layer.losses[0])


def test_the_same_input_gives_the_same_bytes(language_model, windows, tmp_path):
    for name in ("a", "b"):
        decompose(LanguageBlocks(language_model), list(windows[:, None]), tmp_path / name, gradients=3)
    assert directory_of(tmp_path / "a") == directory_of(tmp_path / "b")


@pytest.mark.parametrize(
    "stage, after, gradients", [("reading inputs", 2, 0), ("reading inputs", 1, 3), ("decomposing", 2, 3)]
)
def test_a_killed_run_goes_on_to_the_same_bytes(llama, windows, tmp_path, gradients, stage, after):
    class Killed(BaseException):
        pass

    def kill(now, done, total):
        if (now, done) == (stage, after):
            raise Killed

    batches = list(windows[:, None])
    decompose(LanguageBlocks(llama), batches, tmp_path / "whole", gradients=gradients)
    with pytest.raises(Killed):
        decompose(LanguageBlocks(llama), batches, tmp_path / "cut", gradients=gradients, progress=kill)
    told = []
    decompose(
        LanguageBlocks(llama),
        batches,
        tmp_path / "cut",
        gradients=gradients,
        progress=lambda *x: told.append(x),
    )
    assert directory_of(tmp_path / "whole") == directory_of(tmp_path / "cut")
    assert len([x for x in told if x[0] == "reading inputs"]) == (3 - after if stage == "reading inputs" else 0)


def test_a_language_models_predicted_loss_is_about_its_divergence(language_model, windows, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    blocks = LanguageBlocks(language_model)
    found = decompose(blocks, list(windows[:, None]), tmp_path, gradients=12, damping=(0, 0))
    plan = plan_ranks(found.layers, 0.9)
    before = model(windows).logits.log_softmax(-1).detach()
    for name, layer in low_rank_layers(model, found, plan).items():
        replace_layer(model, name, layer)
    after = model(windows).logits.log_softmax(-1).detach()
    measured = float((before.exp() * (before - after)).sum(-1).mean())
    assert plan.loss / 3 < measured < plan.loss * 3


def test_nothing_to_calibrate_with_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no batches"):
        decompose(WholeNetwork(small_network(0)), [], tmp_path)
    with pytest.raises(ValueError, match="what passes through 0 is not finite"):
        decompose(WholeNetwork(small_network(0)), [torch.full((4, 12), torch.nan)], tmp_path / "b")
    unused = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    unused.forward = lambda x: unused["a"](x)
    with pytest.raises(ValueError, match="nothing passed through b: leave it out with skip"):
        decompose(WholeNetwork(unused), [torch.ones(2, 2)], tmp_path / "c")


def test_an_empty_folder_has_no_layers(tmp_path):
    assert Decomposition(tmp_path).layers == {}
