"""Sparsity keeps what it says; ways of storing layers stay in the budget, are better with more, and leave no trace."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from eckart.nn.approximate import approximated  # noqa: E402
from eckart.nn.blocks import WholeNetwork  # noqa: E402
from eckart.nn.calibrate import decompose  # noqa: E402
from eckart.nn.compare import ways  # noqa: E402
from eckart.nn.sparse import magnitude, wanda  # noqa: E402
from eckart.nn.surgery import layers_of, weight_of  # noqa: E402


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_the_largest_stay_and_nothing_else(m, n, keep, seed):
    generator = torch.Generator().manual_seed(seed)
    W, x = torch.randn(m, n, generator=generator), torch.randn(2 * n, n, generator=generator)
    found = magnitude(W, keep)
    assert int((found != 0).sum()) == int(keep * m * n)
    assert bool(((found == W) | (found == 0)).all())
    if 0 < int(keep * m * n) < m * n:
        assert found[found != 0].abs().min() >= W[found == 0].abs().max()
    R = x.T @ x / len(x)
    found = wanda(W, R, keep)
    assert ((found != 0).sum(1) == int(keep * n)).all()
    felt = W.abs() * R.diagonal().sqrt()
    for row, kept in zip(felt, found != 0, strict=True):
        if 0 < int(keep * n) < n:
            assert row[kept].min() >= row[~kept].max()


def test_equal_inputs_make_wanda_magnitude_row_by_row():
    W = torch.randn(5, 8)
    torch.testing.assert_close(wanda(W, torch.eye(8), 0.5), torch.cat([magnitude(row[None], 0.5) for row in W]))


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"keep is 1\.5"):
        magnitude(torch.ones(2, 2), 1.5)
    with pytest.raises(ValueError, match="keep is -1"):
        wanda(torch.ones(2, 2), torch.eye(2), -1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 9))


@pytest.fixture
def images():
    mixing = torch.randn(48, 48, generator=torch.Generator().manual_seed(1))
    flat = torch.randn(60, 48, generator=torch.Generator().manual_seed(2)) @ mixing
    return flat.view(60, 3, 4, 4)


@pytest.fixture
def found(network, images, tmp_path):
    return decompose(WholeNetwork(network), [images], tmp_path, gradients=1, damping=(0.0, 0.0), keep_moments=True)


def test_moments_are_those_of_the_inputs(network, images, found):
    with torch.no_grad():
        first = torch.nn.functional.unfold(images, 3).transpose(1, 2).reshape(-1, 27).double()
        second = network[:3](images).double()
    torch.testing.assert_close(found.moments("0"), first.T @ first / len(first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.moments("3"), second.T @ second / len(second), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [0.5, 3.0, 5.5, 8.9, 12.8, 16.0, 40.0])
def test_every_way_stays_in_the_budget(network, found, budget):
    layers = layers_of(network)
    numbers = sum(layer.weight.numel() for layer in layers.values())
    given = ways(found, budget, group=16)
    assert [way.name for way in given] or budget < 1
    for way in given:
        assert way.bits <= budget + 1e-9
        stored = {name: way.weight(name, weight_of(layer)).flatten(1) for name, layer in layers.items()}
        if way.name in ("magnitude", "wanda"):
            kept = sum(int((X != 0).sum()) for X in stored.values())
            assert 16 * kept / numbers + 1 <= way.bits + 1e-9
        if way.name in ("nearest", "gptq"):
            groups = [part for X in stored.values() for row in X for part in row.split(16)]
            # (as many values as it says, and not the half of them, which would be a bit less)
            bits = int(way.setting.split()[0])
            assert min(15, 2 ** (bits - 1)) < max(len(part.unique()) for part in groups) <= 2**bits


def test_more_bits_are_nearer(network, images, found):
    layers = layers_of(network)
    before = network(images)
    errors: dict[str, list[float]] = {}
    for budget in (4.1, 6.1, 9.0):
        for way in ways(found, budget, group=16):
            with approximated(layers, found, way.weight), torch.no_grad():
                errors.setdefault(way.name, []).append(float((network(images) - before).square().mean().detach()))
    assert len(errors) == 7
    for name, falling in errors.items():
        assert falling == sorted(falling, reverse=True), name


def test_what_was_stored_leaves_no_trace(network, found):
    layers = layers_of(network)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    for way in ways(found, 5.0, group=16):
        with approximated(layers, found, way.weight):
            assert any(not torch.equal(before[name], x) for name, x in network.state_dict().items())
        assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())


def test_an_error_on_the_way_leaves_none_either(network, found):
    before = {name: x.clone() for name, x in network.state_dict().items()}

    def fail(name, W):
        return W * 0 if name == "0" else None

    with pytest.raises(AttributeError), approximated(layers_of(network), found, fail):
        pass
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())


def test_the_bias_takes_up_the_mean_error(network, images, found):
    layers = layers_of(network)
    with torch.no_grad():
        before = network[0](images).mean((0, 2, 3))
        for way in ways(found, 5.0, group=16):
            with approximated(layers, found, way.weight):
                torch.testing.assert_close(network[0](images).mean((0, 2, 3)), before, atol=1e-4, rtol=1e-4)
