"""Laws of weights as the matrix of columns and rows: losses are those of the definition, least where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reference.lowrank import metric_distance  # noqa: E402
from torch import nn  # noqa: E402

from eckart.nn.blocks import WholeNetwork  # noqa: E402
from eckart.nn.calibrate import decompose  # noqa: E402
from eckart.nn.compress import low_rank_layers  # noqa: E402
from eckart.nn.linear import folded, is_split, unfolded  # noqa: E402
from eckart.nn.plan import plan_ranks  # noqa: E402
from eckart.nn.separable import decomposed  # noqa: E402

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 6)


def metric(size, rank=None):
    x = torch.randn(rank or 2 * size, size, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1, size)).double()
    return x.T @ x


@few
@given(m=sizes, c=sizes, high=st.integers(1, 4), wide=st.integers(1, 4), seed=seeds)
def test_a_weight_folds_back_and_its_matrix_is_the_squarer_one(m, c, high, wide, seed):
    W = torch.randn(m, c, high, wide, generator=torch.Generator().manual_seed(seed))
    matrix = unfolded(W)
    torch.testing.assert_close(folded(matrix, W.shape), W, atol=0, rtol=0)
    assert min(matrix.shape) == max(min(m, c * high * wide), min(m * wide, c * high))


@few
@given(m=sizes, c=sizes, high=st.integers(1, 3), wide=st.integers(1, 3), seed=seeds, data=st.data())
def test_losses_are_those_of_the_weights_that_are_cut(m, c, high, wide, seed, data):
    torch.manual_seed(seed)
    W = torch.randn(m, c, high, wide, dtype=torch.float64)
    n = c * high * wide
    L, R = data.draw(st.sampled_from([None, metric(m)])), metric(n, data.draw(st.sampled_from([None, 1])))
    found, squares = decomposed(W, L, R)
    for rank in range(int((found.squares > 0).sum()) + 1):
        D = W - folded(found.cut(rank).dense(), W.shape)
        measured = metric_distance(D.flatten(1).numpy(), None if L is None else L.numpy(), R.numpy())
        whole = metric_distance(W.flatten(1).numpy(), None if L is None else L.numpy(), R.numpy())
        assert measured == pytest.approx(whole - squares[:rank].sum(), rel=1e-6, abs=1e-9 * whole)


def test_where_patches_are_a_product_no_other_cut_is_better():
    torch.manual_seed(0)
    W, L = torch.randn(6, 5, 3, 3, dtype=torch.float64), metric(6)
    assert is_split(W.shape)
    found, squares = decomposed(W, L, torch.kron(metric(15), metric(3)))
    np.testing.assert_allclose(squares, found.squares, rtol=1e-8, atol=1e-8 * squares[0])
    assert (np.diff(squares) <= 0).all()


def test_columns_and_rows_keep_more_of_an_image_than_whole_filters():
    torch.manual_seed(0)
    W = torch.randn(16, 16, 3, 3, dtype=torch.float64)
    R = metric(144)
    _, squares = decomposed(W, None, R)
    whole = torch.linalg.svdvals(W.flatten(1) @ torch.linalg.cholesky(R)).square().numpy()
    assert squares[:17].sum() / squares.sum() > whole[:9].sum() / whole.sum()  # about as many numbers


@few
@given(seed=seeds, bias=st.booleans())
def test_the_predicted_error_of_a_convolution_is_the_measured_one(seed, bias, tmp_path_factory):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=bias)).requires_grad_(False)
    x = torch.randn(20, 4, 6, 6).cumsum(3) + 1
    found = decompose(WholeNetwork(network), [x], tmp_path_factory.mktemp("work"), gradients=0, damping=(0, 0))
    plan = plan_ranks(found.layers, 0.8)
    new = low_rank_layers(network, found, plan)["0"]
    measured = float((new(x) - network(x)).detach().double().square().sum() / len(x) / 2)
    assert measured == pytest.approx(plan.loss, rel=1e-4)
