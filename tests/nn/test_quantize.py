"""Laws of weights on a grid: few values a group, errors that the metric's order respects, low rank that only helps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reference.lowrank import metric_distance  # noqa: E402

from eckart.nn.quantize import gptq, quantized_bits, round_to_nearest, with_low_rank  # noqa: E402

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**31 - 1)


def problem(m, n, seed):
    rng = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=rng, dtype=torch.float64)
    x = torch.randn(3 * n + 2, n, generator=rng, dtype=torch.float64) @ torch.randn(n, n, generator=rng).double()
    return W, x.T @ x / len(x)


def distance(difference, R):
    return metric_distance(difference.numpy(), None, R.numpy())


def gptq_by_definition(W, R, bits, group, damping=0.01):
    """One column after another, everything that follows corrected at once."""
    W, n = W.numpy().copy(), W.shape[1]
    R = R.numpy() + damping * np.diag(R.numpy()).mean() * np.eye(n)
    U = np.linalg.cholesky(np.linalg.inv(R)).T
    Q = np.zeros_like(W)
    for i in range(n):
        if i % group == 0:
            low, high = W[:, i : i + group].min(1), W[:, i : i + group].max(1)
            scale = np.where(high > low, (high - low) / (2**bits - 1), 1)
        Q[:, i] = low + scale * np.clip(np.round((W[:, i] - low) / scale), 0, 2**bits - 1)
        W[:, i + 1 :] -= np.outer((W[:, i] - Q[:, i]) / U[i, i], U[i, i + 1 :])
    return Q


@few
@given(m=sizes, n=sizes, seed=seeds, bits=st.integers(1, 6), group=st.integers(1, 50))
def test_every_weight_is_on_its_groups_grid_and_at_most_half_a_step_away(m, n, seed, bits, group):
    W, _ = problem(m, n, seed)
    Q = round_to_nearest(W, bits, group)
    for part, rounded in zip(W.split(group, 1), Q.split(group, 1), strict=True):
        step = (part.amax(1) - part.amin(1)) / (2**bits - 1)
        assert ((part - rounded).abs().amax(1) <= step / 2 + 1e-12).all()
        assert all(len(row.unique()) <= 2**bits for row in rounded)
    torch.testing.assert_close(round_to_nearest(Q, bits, group), Q)  # what is on the grid stays


@few
@given(
    m=st.integers(1, 6),
    n=sizes,
    seed=seeds,
    bits=st.integers(1, 5),
    group=st.sampled_from([1, 3, 8, 16, 64]),
    block=st.sampled_from([1, 4, 5, 16, 128]),
)
def test_columns_make_up_for_each_other_as_the_definition_says(m, n, seed, bits, group, block):
    W, R = problem(m, n, seed)
    expected = gptq_by_definition(W, R, bits, group)
    found = gptq(W, R, bits, group, block=block).numpy()
    # A weight half way between two values of the grid may fall on either side by a rounding; the rest then follows it.
    close = np.isclose(found, expected, atol=1e-6).all(axis=1)
    assert close.mean() >= 0.9 or m == 1


def test_making_up_for_errors_pays_in_the_metric():
    gains = []
    for seed in range(10):
        W, R = problem(16, 64, seed)
        plain, better = round_to_nearest(W, 3, 32), gptq(W, R, 3, 32)
        gains.append(distance(W - better, R) / distance(W - plain, R))
    assert np.mean(gains) < 0.6


@few
@given(m=sizes, n=sizes, seed=seeds, data=st.data())
def test_a_part_of_low_rank_only_helps_and_more_rounds_too(m, n, seed, data):
    rank = data.draw(st.integers(0, min(m, n)))
    W, R = problem(m, n, seed)

    def quantize(x):
        return round_to_nearest(x, 2, 16)

    alone, errors = distance(W - quantize(W), R), []
    for rounds in (1, 2, 5):
        Q, X = with_low_rank(W, quantize, rank, right=R, rounds=rounds)
        torch.testing.assert_close(round_to_nearest(Q, 2, 16), Q)
        assert X.rank == rank
        errors.append(distance(W - Q - X.dense(), R))
    slack = 1e-7 * (1 + distance(W, R))
    assert errors[0] <= alone + slack
    assert errors[1] <= errors[0] + slack
    assert errors[2] <= errors[1] + slack
    if rank == min(m, n):
        assert errors[0] <= slack


def test_rounds_find_more_than_the_first():
    W, R = problem(32, 32, 0)
    first, fifth = (
        distance(W - Q - X.dense(), R)
        for Q, X in (with_low_rank(W, lambda x: round_to_nearest(x, 2, 32), 6, right=R, rounds=r) for r in (1, 5))
    )
    assert fifth < 0.97 * first


def test_bits_are_counted_with_scales_and_offsets():
    assert quantized_bits(64, 4, 64) == 4.5
    assert quantized_bits(65, 4, 64) == pytest.approx(4 + 64 / 65)


def test_what_is_out_of_range_is_refused():
    W, R = problem(2, 3, 0)
    for call in (lambda: round_to_nearest(W, 0), lambda: gptq(W, R, 17), lambda: round_to_nearest(W, 4, 0)):
        with pytest.raises(ValueError, match="expected 1 to 16, and at least 1"):
            call()
    with pytest.raises(ValueError, match="rounds is 0"):
        with_low_rank(W, round_to_nearest, 1, rounds=0)
