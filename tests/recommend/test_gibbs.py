"""The sampler samples the right posterior, and its intervals hold what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array
from strategies import interactions

import eckart as ek
from eckart.core.kernels import kernels
from eckart.recommend.implied import link_matrix
from eckart.recommend.posterior import Prior, draw_normal_wishart, draw_rows, prior_means
from eckart.recommend.spread import coverage, half_width


def generated(rng, n=150, m=100, k=2, noise=0.5, share=0.3):
    """Ratings drawn from the model itself, and the cells that were left out."""
    W, H = rng.standard_normal((n, k)), rng.standard_normal((m, k))
    R = 3 + W @ H.T + noise * rng.standard_normal((n, m))
    observed = rng.random((n, m)) < share
    observed[:, 0] = observed[0] = True
    u, i = np.nonzero(observed)
    return interactions(u.tolist(), i.tolist(), R[observed]), R, observed


def test_rows_are_drawn_from_their_gaussian_posterior():
    # One row, repeated: mean and covariance of many draws against the closed form, within Monte-Carlo error.
    rng = np.random.default_rng(0)
    draws, k, n = 40_000, 3, 4
    Y, v, alpha = rng.standard_normal((n, k)).astype(np.float32), rng.uniform(1, 5, n), 1.5
    L, p = np.diag([1.0, 2.0, 3.0]) + 0.5, np.array([0.3, -0.2, 0.1])
    indptr = np.arange(draws + 1, dtype=np.int64) * n
    X, failed = kernels.posterior_rows(
        indptr,
        np.tile(np.arange(n, dtype=np.int32), draws),
        np.tile(v.astype(np.float32), draws),
        Y,
        alpha,
        L.astype(np.float32),
        np.tile(p.astype(np.float32), (draws, 1)),
        rng.standard_normal((draws, k), dtype=np.float32),
        2,
    )
    assert failed == -1
    covariance = np.linalg.inv(L + alpha * Y.T @ Y)
    mean = covariance @ (L @ p + alpha * Y.T @ v)
    z = (X.mean(axis=0) - mean) / np.sqrt(np.diag(covariance) / draws)
    assert np.abs(z).max() < 4
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) / draws)
    assert np.abs((np.cov(X.T) - covariance) / spread).max() < 6
    # The same distribution by perturbed data: a ridge solution for ratings and prior mean that carry noise.
    noisy = v + rng.standard_normal((draws, n)) / np.sqrt(alpha)
    pulled = p + rng.standard_normal((draws, k)) @ np.linalg.inv(np.linalg.cholesky(L))
    perturbed = (pulled @ L + alpha * noisy @ Y) @ covariance
    assert np.abs((np.cov(perturbed.T) - np.cov(X.T)) / spread).max() < 8


def test_the_link_is_drawn_from_its_posterior():
    # A chain of passes over B with everything else fixed: its mean and covariance against the ridge posterior's.
    rng = np.random.default_rng(1)
    n, m, passes, strength = 6, 3, 20_000, 0.8
    F = (rng.random((n, m)) < 0.6).astype(np.float32)
    x = rng.standard_normal((n, 1)).astype(np.float32)
    T = csr_array(F.T)
    arrays = T.indptr.astype(np.int64), T.indices.astype(np.int32), T.data
    E, B, drawn = x, np.zeros((m, 1), np.float32), []
    for noise in rng.standard_normal((passes, m, 1)).astype(np.float32):
        E, B = kernels.sample_link(*arrays, E, B, strength, noise, 1)
        drawn.append(B[:, 0])
    np.testing.assert_allclose(E, x - F @ B, atol=1e-3)
    covariance = np.linalg.inv(F.T @ F + strength * np.eye(m))
    np.testing.assert_allclose(np.mean(drawn, axis=0), (covariance @ F.T @ x)[:, 0], atol=0.05)
    np.testing.assert_allclose(np.cov(np.array(drawn).T), covariance, atol=0.06)


def test_mean_and_precision_have_the_moments_of_normal_wishart():
    rng = np.random.default_rng(2)
    n, k, count, scale = 30, 2, 5, 0.7
    shape = np.array([[1.0, 0.0], [1.5, 0.4]])  # strongly correlated: a triangle on the wrong side must show
    E, Q = rng.standard_normal((n, k)) @ shape.T + 1, 0.3 * rng.standard_normal((count, k))
    draws = [draw_normal_wishart(E, Q.T @ Q, count, scale, rng) for _ in range(5_000)]
    mean, L = (np.array(part) for part in zip(*draws, strict=True))
    centre = E.mean(axis=0)
    S = scale * np.eye(k) + Q.T @ Q + (E - centre).T @ (E - centre) + 2 * n / (2 + n) * np.outer(centre, centre)
    df = k + n + count
    np.testing.assert_allclose(L.mean(axis=0), df * np.linalg.inv(S), rtol=0.03)
    spread = S / ((2 + n) * (df - k - 1))  # Var(m) = E[((2 + n) L)^-1]
    assert np.abs((mean.mean(axis=0) - n * centre / (2 + n)) / np.sqrt(np.diag(spread) / 5_000)).max() < 4
    np.testing.assert_allclose(np.cov(mean.T), spread, rtol=0.1)


def test_prior_means_add_what_is_there():
    matrix = interactions([0, 0, 1], [0, 1, 1], [5.0, 1.0, 3.0]).matrix
    prior = Prior(np.array([1.0]), np.eye(1), np.array([[2.0], [4.0]], np.float32), 1.0)
    np.testing.assert_allclose(prior_means(link_matrix(matrix), prior), [[1 + 6 / np.sqrt(2)], [5.0]], rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_hold_ratings_of_the_model_as_often_as_they_say(seed):
    data, R, observed = generated(np.random.default_rng(seed))
    model = ek.Gibbs(rank=3, epochs=80, samples=40, seed=seed).fit(data)
    u, i = np.nonzero(~observed)
    low, high = model.predict_interval(u, i, level=0.9)
    assert np.mean((low <= R[u, i]) & (R[u, i] <= high)) == pytest.approx(0.9, abs=0.03)
    errors, std = R[u, i] - model.predict(u, i), model.predict_std(u, i)
    assert coverage(errors, std, [0.5])[0] == pytest.approx(0.5, abs=0.04)
    assert np.sqrt(np.mean(errors**2)) < 0.75  # noise 0.5, mean predictor 1.5
    assert (model.predict_std(u, i, noise=False) < std).all()


def test_the_spread_is_that_of_drawn_rows():
    # Within and between by closed form against a simulation: rows drawn from every kept sample.
    data, _, _ = generated(np.random.default_rng(3), n=20, m=15)
    model = ek.Gibbs(rank=2, epochs=30, samples=20).fit(data)
    side, rng = model.item_side, np.random.default_rng(4)
    S, k, m = 20, 2, 15
    H = side.H.reshape(m, S, k)
    scores = []
    for s in range(S):
        prior = Prior(
            side.extra["mean"][s],
            side.extra["precision"][s],
            np.ascontiguousarray(side.extra["link"].reshape(m, S, k)[:, s]),
            1.0,
        )
        means = prior_means(link_matrix(data.matrix), prior)
        for _ in range(200):
            noise = rng.standard_normal((20, k), dtype=np.float32)
            Y = np.ascontiguousarray(H[:, s])
            x = draw_rows(data.matrix, side.mean, Y, float(side.extra["alpha"][s]), prior, means, noise, 1)
            scores.append(x[:5] @ Y[:4].T)
    u, i = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    np.testing.assert_allclose(model.predict_std(u, i, noise=False), np.std(scores, axis=0).ravel(), rtol=0.1)
    np.testing.assert_allclose(model.predict(u, i), side.mean + np.mean(scores, axis=0).ravel(), atol=0.1)


def test_more_ratings_make_surer_and_a_stranger_has_the_widest_spread():
    data, _, _ = generated(np.random.default_rng(5))
    model = ek.Gibbs(rank=2, epochs=60, samples=20, burn_in=0.6).fit(data)
    lengths = np.diff(data.matrix.indptr)
    few, many = int(lengths.argmin()), int(lengths.argmax())
    std = model.predict_std([few] * 100 + [many] * 100 + [-7] * 100, list(range(100)) * 3).reshape(3, 100)
    assert (np.diff(-std.mean(axis=1)[[2, 0, 1]]) > 0).all()
    assert np.isnan(model.predict_std([0], [12345])).all()
    assert len(model.predict_std([], [])) == 0


def test_a_scale_changes_nothing_but_the_scale():
    data, R, observed = generated(np.random.default_rng(6))
    scaled = dataclasses.replace(data, matrix=data.matrix * np.float32(100))
    solver = ek.Gibbs(rank=2, epochs=80, samples=20, burn_in=0.5)  # the factors take some 20 sweeps to grow
    one, other = solver.fit(data), solver.fit(scaled)
    u, i = (part[:2000] for part in np.nonzero(~observed))
    # In distribution, not in bits: the order of the chain hashes the values.
    error, same = one.predict(u, i) - R[u, i], other.predict(u, i) / 100 - R[u, i]
    assert np.sqrt(np.mean(same**2)) == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.05)
    assert np.mean(other.predict_std(u, i)) / 100 == pytest.approx(np.mean(one.predict_std(u, i)), rel=0.05)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    data, _, _ = generated(np.random.default_rng(7), n=20, m=15)
    held_out, _, _ = generated(np.random.default_rng(8), n=20, m=15, share=0.1)
    solver = ek.Gibbs(rank=2, epochs=9, samples=4)
    whole = solver.fit(data, held_out)

    class Cut(Exception):
        pass

    def cut(record):
        if record["epoch"] == 5:
            raise Cut

    with pytest.raises(Cut):
        solver.fit(data, held_out, checkpoint=tmp_path / "c", callback=cut)
    with pytest.raises(ValueError, match="a run of 9 epochs"):
        dataclasses.replace(solver, epochs=12).fit(data, held_out, checkpoint=tmp_path / "c", resume=True)
    resumed = solver.fit(data, held_out, checkpoint=tmp_path / "c", resume=True)
    assert resumed.W.tobytes() == whole.W.tobytes()
    assert resumed.H.tobytes() == whole.H.tobytes()
    assert resumed.history == whole.history
    assert whole.history[-1]["validation_rmse"] > 0


def test_kept_sweeps_are_spread_over_what_follows_the_burn_in():
    assert ek.Gibbs(epochs=10, samples=3, burn_in=0.3).kept.tolist() == [4, 7, 10]
    assert ek.Gibbs(epochs=4, samples=50, burn_in=0.5).kept.tolist() == [3, 4]
    assert ek.Gibbs(epochs=1).kept.tolist() == [1]
    assert ek.Gibbs(rank=3, epochs=4, samples=50, burn_in=0.5).width == 6
    for epochs in range(1, 60):
        for samples in range(1, 60):
            kept = ek.Gibbs(epochs=epochs, samples=samples).kept
            assert len(set(kept.tolist())) == len(kept) == min(samples, epochs - int(0.2 * epochs))


@pytest.mark.parametrize(
    "change, message",
    [({"samples": 0}, "samples is 0"), ({"burn_in": 1.0}, r"burn_in is 1.0"), ({"burn_in": -0.1}, "burn_in is -0.1")],
)
def test_settings_of_its_own_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        ek.Gibbs(**change)


def test_a_solver_without_a_posterior_says_so():
    data, _, _ = generated(np.random.default_rng(9), n=20, m=15)
    model = ek.ALS(rank=2, epochs=2).fit(data)
    with pytest.raises(ValueError, match=r"ALS gives one estimate and no spread: fit with ek\.Gibbs"):
        model.predict_std([0], [0])
    with pytest.raises(ValueError, match="level is 1"):
        half_width(1)
    with pytest.raises(ValueError, match="use ImplicitALS"):
        ek.Gibbs(rank=2).fit(dataclasses.replace(data, rated=False))


def test_equal_ratings_are_predicted():
    u, i = np.nonzero(np.ones((6, 5)))
    model = ek.Gibbs(rank=2, epochs=10).fit(interactions(u.tolist(), i.tolist(), np.full(30, 4.0)))
    np.testing.assert_allclose(model.predict(u, i), 4.0, atol=0.6)
