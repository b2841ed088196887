"""Laws of layers of low rank: they compute what the product would, and stand where the layer stood."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from eckart.core.lowrank import LowRank, pivoted_numbers  # noqa: E402
from eckart.nn.linear import LowRankLinear, folded, unfolded  # noqa: E402
from eckart.nn.surgery import (  # noqa: E402
    empty_low_rank,
    layers_of,
    low_rank_tensors,
    matrix_of,
    outputs_as_rows,
    replace_layer,
    rows_of,
)

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 20)
seeds = st.integers(0, 2**31 - 1)


def random_factors(m, n, k, seed):
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(size, k, generator=rng, dtype=torch.float64) for size in (m, n))
    return LowRank(left, right)


def filled(layer, factors, pivoted):
    new = empty_low_rank(layer, factors.rank, pivoted)
    tensors = low_rank_tensors(factors, pivoted)
    tensors["right"] = tensors["right"].reshape(new.right.shape)
    new.load_state_dict(tensors | ({} if layer.bias is None else {"bias": layer.bias.detach()}))
    return new


@few
@given(m=sizes, n=sizes, seed=seeds, pivoted=st.booleans(), bias=st.booleans(), data=st.data())
def test_a_linear_layer_computes_what_the_product_does(m, n, seed, pivoted, bias, data):
    factors = random_factors(m, n, data.draw(st.integers(0, min(m, n))), seed)
    layer = nn.Linear(n, m, bias, dtype=torch.float64)
    new = filled(layer, factors, pivoted)
    layer.weight.data = factors.dense()
    x = torch.randn(2, 3, n, dtype=torch.float64)
    torch.testing.assert_close(new(x), layer(x), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(new.weight, layer.weight.data, atol=1e-8, rtol=1e-6)
    if pivoted:
        numbers = sum(p.numel() for name, p in new.named_parameters() if name != "bias")
        assert numbers == pivoted_numbers(m, n, factors.rank)


shapes = st.sampled_from(
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
        {"kernel_size": 2, "padding": "valid", "bias": False},
    ]
)


@few
@given(shape=shapes, m=sizes, channels=st.integers(1, 4), pivoted=st.booleans(), seed=seeds, data=st.data())
def test_a_convolution_computes_what_the_product_does(shape, m, channels, pivoted, seed, data):
    layer = nn.Conv2d(channels, m, **shape, dtype=torch.float64)
    rows, n = unfolded(layer.weight).shape
    factors = random_factors(rows, n, data.draw(st.integers(1, min(rows, n))), seed)
    new = filled(layer, factors, pivoted)
    layer.weight.data = folded(factors.dense(), layer.weight.shape)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(new(x), layer(x), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(new.weight, layer.weight.data, atol=1e-8, rtol=1e-6)


@few
@given(shape=shapes, seed=seeds)
def test_the_rows_of_a_convolution_are_what_its_matrix_acts_on(shape, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(3, 4, **shape, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    rows = rows_of(layer, x) @ matrix_of(layer).T
    rows = rows if layer.bias is None else rows + layer.bias
    torch.testing.assert_close(rows, outputs_as_rows(layer, layer(x)))


def test_gradients_reach_the_factors():
    layer = filled(nn.Linear(5, 4), random_factors(4, 5, 2, 0), True)
    layer(torch.randn(3, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_layer_moves_to_another_dtype_and_its_order_does_not():
    layer = filled(nn.Linear(5, 4), random_factors(4, 5, 2, 0), True).to(torch.bfloat16)
    assert layer.left.dtype == layer.weight.dtype == torch.bfloat16
    assert layer.order.dtype == torch.int32
    assert layer(torch.randn(1, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_layers_are_found_by_name_and_typos_are_answered():
    network = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "mlp": nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1))})
    assert list(layers_of(network)) == ["q_proj", "mlp.0", "mlp.1"]
    assert list(layers_of(network, ["q_proj"])) == ["q_proj"]
    assert list(layers_of(network, ["*"], ["mlp.*"])) == ["q_proj"]
    with pytest.raises(ValueError, match="no layer matches 'q_porj': did you mean 'q_proj'\\? The network has"):
        layers_of(network, ["q_porj"])
    with pytest.raises(ValueError, match="ReLU has no layer of a kind that can be compressed"):
        layers_of(nn.ReLU())


def test_what_is_no_plain_matrix_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(
        Scaled(2, 2),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Linear(2, 2),
    )
    assert list(layers_of(network)) == ["3"]


def test_a_layer_is_replaced_where_it_stands():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    replace_layer(network, "0.0", LowRankLinear(2, 3, 1))
    assert isinstance(network[0][0], LowRankLinear)
    assert network(torch.ones(1, 2)).shape == (1, 3)


def test_a_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rank is 4, expected 0 to 3"):
        LowRankLinear(5, 3, 4)


def test_the_order_says_where_an_output_is():
    factors = LowRank(torch.tensor([[0.5], [4.0], [1.0]], dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    tensors = low_rank_tensors(factors)  # the largest row is the pivot, and stored as it is
    assert tensors["right"].item() == 4
    np.testing.assert_allclose(tensors["left"].flatten(), [0.125, 0.25])
    assert tensors["order"].tolist() == [1, 0, 2]
