"""Losses against their definitions, cell by cell, and their gradients against differences of those."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import towers as reference

torch = pytest.importorskip("torch", reason="two towers need torch: pip install 'eckart[torch]'")
from eckart.recommend.towers import losses  # noqa: E402

NAMES = {"softmax": (0.4,), "bpr": (0.7, 9), "ccl": (0.1, 5.0, 9)}


def differences(of, at, step=1e-6):
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        there = [at.copy(), at.copy()]
        there[0][place] += step
        there[1][place] -= step
        gradient[place] = (of(there[0]) - of(there[1])) / (2 * step)
    return gradient


def tensors(*arrays):
    return [torch.from_numpy(np.array(a)) for a in arrays]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(b=st.integers(1, 4), p=st.integers(0, 7), N=st.integers(1, 5), masked=st.booleans(), seed=st.integers(0, 999))
def test_a_sampled_loss_is_its_definition_and_so_is_its_gradient(name, b, p, N, masked, seed):
    rng = np.random.default_rng(seed)
    s, S, user = rng.standard_normal(p), rng.standard_normal((b, N)), rng.integers(0, b, p)
    w, omega = rng.uniform(0.1, 2, p), rng.uniform(0.1, 4, N)
    if masked:
        S[rng.random((b, N)) < 0.4] = -np.inf
    twin, more = getattr(reference, name), NAMES[name]
    overwritten = torch.from_numpy(S.copy())
    value, ds = getattr(losses, name)(*tensors(s, user, w), overwritten, *tensors(omega), *more)
    assert value == pytest.approx(twin(s, user, w, S, omega, *more), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(ds, differences(lambda x: twin(x, user, w, S, omega, *more), s), atol=1e-6)
    finite = np.where(np.isinf(S), -1e3, S)  # so far down that no loss feels it, and differences exist
    expected = differences(lambda x: twin(s, user, w, x, omega, *more), finite)
    np.testing.assert_allclose(overwritten, expected, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(b=st.integers(1, 4), p=st.integers(0, 7), N=st.integers(1, 5), k=st.integers(1, 3), seed=st.integers(0, 999))
def test_the_squared_loss_is_its_definition_and_so_is_its_gradient(b, p, N, k, seed):
    rng = np.random.default_rng(seed)
    X, P, Y = (rng.standard_normal((rows, k)) for rows in (b, p, N))
    user, omega = rng.integers(0, b, p), rng.uniform(0.1, 4, N)
    weight, reg_user, reg_entry = rng.uniform(0, 2, p), rng.uniform(0, 2, b), rng.uniform(0, 2, p)

    def twin(X, P, Y):
        return reference.squared(X, user, P, Y, omega, weight, reg_user, reg_entry, 0.3)

    value, found = losses.squared(*tensors(X, user, P, Y, omega, weight, reg_user, reg_entry), 0.3)
    assert value == pytest.approx(twin(X, P, Y), rel=1e-9)
    np.testing.assert_allclose(found.users, differences(lambda x: twin(x, P, Y), X), atol=1e-5)
    np.testing.assert_allclose(found.entries, differences(lambda x: twin(X, x, Y), P), atol=1e-5)
    np.testing.assert_allclose(found.pool, differences(lambda x: twin(X, P, x), Y), atol=1e-5)


def test_softmax_is_finite_where_scores_are_huge_and_nothing_is_drawn():
    S = torch.tensor([[300.0, -300.0], [-torch.inf, -torch.inf]])
    value, ds = losses.softmax(torch.tensor([-300.0, 5.0]), torch.tensor([0, 1]), torch.ones(2), S, torch.ones(2), 0.1)
    assert value == pytest.approx(6000)
    np.testing.assert_allclose(ds, [-10, 0])
    np.testing.assert_allclose(S, [[10, 0], [0, 0]], atol=1e-6)
