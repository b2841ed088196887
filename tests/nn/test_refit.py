"""Laws of the sequential pass: it changes nothing without a reason, is the optimum in closed form, and never loses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from eckart.core.lowrank import LowRank  # noqa: E402
from eckart.nn.blocks import WholeNetwork  # noqa: E402
from eckart.nn.calibrate import decompose  # noqa: E402
from eckart.nn.compress import compress, low_rank_layers  # noqa: E402
from eckart.nn.linear import LowRankConv2d, LowRankLinear, unfolded  # noqa: E402
from eckart.nn.plan import plan_ranks  # noqa: E402
from eckart.nn.refit import refit  # noqa: E402
from eckart.nn.surgery import empty_low_rank, low_rank_tensors, replace_layer  # noqa: E402

few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 2**31 - 1)


class Residual(nn.Module):
    """A small residual network with BatchNorm, as image classifiers are."""

    def __init__(self, bias=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, (3, 2), padding="same", dilation=(1, 2), bias=bias)
        self.down = nn.Conv2d(8, 12, 3, stride=(2, 1), padding=1, bias=bias)
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.linear(F.relu(self.down(x)).mean((2, 3)))


def problem(seed, bias=False):
    torch.manual_seed(seed)
    network = Residual(bias)
    images = torch.randn(30, 3, 8, 6).cumsum(2).cumsum(3) / 5
    network.norm1.momentum = None
    network(images)  # BatchNorm sees data
    return network.eval().requires_grad_(False), list(images.split(10))


def cut(network, batches, keep, folder):
    found = decompose(WholeNetwork(network), batches, folder, gradients=3, damping=(0.1, 0.01))
    return low_rank_layers(network, found, plan_ranks(found.layers, keep))


def put(network, layers):
    network = copy.deepcopy(network)
    for name, layer in layers.items():
        replace_layer(network, name, copy.deepcopy(layer))
    return network


@torch.no_grad()
def outputs_of(network, names, batches):
    """What each layer of these names gives, over all batches."""
    kept = {name: [] for name in names}
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, x, out, name=name: kept[name].append(out))
        for name in names
    ]
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


@few
@given(seed=seeds, bias=st.booleans())
def test_each_layer_is_nearer_to_the_original_than_without(seed, bias, tmp_path_factory):
    """Measured layer by layer: what came before is compressed and refitted."""
    network, batches = problem(seed, bias)
    before = cut(network, batches, 0.6, tmp_path_factory.mktemp("work"))
    after = copy.deepcopy(before)
    refit(network, after, batches)
    targets, first, won = outputs_of(network, before, batches), [], 0
    for name in before:
        errors = []
        for layer in (before[name], after[name]):
            there = put(network, {**{n: after[n] for n in first}, name: layer})
            errors.append(float((outputs_of(there, [name], batches)[name] - targets[name]).square().sum()))
        assert errors[1] <= errors[0] * (1 + 1e-4)
        won += errors[1] < errors[0] * 0.95
        first.append(name)
    assert won >= len(before) / 2


@few
@given(seed=seeds, pivoted=st.booleans())
def test_layers_that_lost_nothing_stay_as_they_are(seed, pivoted):
    network, batches = problem(seed, bias=True)
    new = {}
    for name in ("stem", "conv1", "conv2", "down", "linear"):
        layer: Any = network.get_submodule(name)
        W = unfolded(layer.weight)
        U, s, Vt = torch.linalg.svd(W, full_matrices=False)
        new[name] = empty_low_rank(layer, len(s), pivoted)
        tensors = low_rank_tensors(LowRank(U * s, Vt.T), pivoted)
        tensors["right"] = tensors["right"].reshape(new[name].right.shape)
        new[name].load_state_dict(tensors | {"bias": layer.bias})
    refit(network, new, batches)
    for name, layer in new.items():
        torch.testing.assert_close(layer.weight, network.get_submodule(name).weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(put(network, new)(batches[0]), network(batches[0]), atol=1e-3, rtol=1e-3)


@few
@given(seed=seeds, bias=st.booleans(), pivoted=st.booleans())
def test_in_a_linear_network_it_is_the_regression_of_the_outputs(seed, bias, pivoted):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(10, 8, bias), nn.Linear(8, 6, bias)).double().requires_grad_(False)
    x = (torch.randn(200, 10) @ torch.randn(10, 10) + 1).double()
    new = {"0": LowRankLinear(10, 8, 4, bias, pivoted).double(), "1": LowRankLinear(8, 6, 3, bias, pivoted).double()}
    for layer in new.values():
        layer.load_state_dict(
            {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in layer.state_dict().items()}
        )
    rights = {name: layer.weight for name, layer in new.items()}  # row spaces
    refit(network, new, [x], damping=0)
    passed, target = x, x
    for name, layer in new.items():
        target = network[int(name)](target)
        basis = torch.linalg.svd(rights[name], full_matrices=False)[2][: layer.rank]
        z = passed @ basis.T
        z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1) if bias else z
        passed = z @ torch.linalg.lstsq(z, target).solution
    torch.testing.assert_close(nn.Sequential(*new.values())(x), passed, atol=1e-5, rtol=1e-5)


def test_the_network_gains_and_the_budget_holds():
    gains = []
    for seed in range(4):
        network, batches = problem(seed)
        original, errors = network(torch.cat(batches)), []
        for sequential in (False, True):
            small = copy.deepcopy(network)
            plan = compress(small, batches, 0.6, gradients=3, sequential=sequential)
            errors.append(float((small(torch.cat(batches)).detach() - original).square().mean()))
            held = sum(
                sum(p.numel() for n, p in x.named_parameters() if n != "bias") + len(x.order)
                if isinstance(x, LowRankLinear | LowRankConv2d)
                else x.weight.numel()
                for x in small.modules()
                if isinstance(x, LowRankLinear | LowRankConv2d | nn.Linear | nn.Conv2d)
            )
            assert held == sum(x.numbers for x in plan.layers.values())
            assert plan.keep <= 0.6
        gains.append(errors[1] / errors[0])
    assert sum(gains) / len(gains) < 0.8


def test_batches_join_whatever_they_come_in():
    network, batches = problem(0)
    found = []
    for wrapped in (batches, [(x,) for x in batches], [{"x": x} for x in batches], [torch.cat(batches)]):
        small = copy.deepcopy(network)
        compress(small, wrapped, 0.7, gradients=0, sequential=True)
        found.append(small(batches[0]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-3)


def test_a_layer_that_runs_twice_is_one_layer():
    torch.manual_seed(0)
    shared = nn.Linear(12, 12)
    network = nn.Sequential(shared, nn.Tanh(), shared).requires_grad_(False)
    plan = compress(network, [torch.randn(200, 12)], 0.7, gradients=0, sequential=True)
    assert plan.layers["0"].rank is not None


def test_what_it_cannot_run_is_refused_and_left_as_it_was():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    x = [torch.randn(4, 8, 6) for _ in range(2)]
    network = Turned()
    with pytest.raises(ValueError, match="layer does not get the batch as its first axis"):
        compress(network, x, 0.8, gradients=0, sequential=True)
    assert type(network.layer) is nn.Linear
    with pytest.raises(ValueError, match="one shape beside the first axis"):
        compress(nn.Sequential(nn.Linear(6, 6)), [x[0], x[0][:, :3]], 0.8, gradients=0, sequential=True)
