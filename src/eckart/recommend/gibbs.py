"""Bayesian matrix factorization by Gibbs sampling: no penalty to choose, and a spread for every prediction.

    r_ui = mean + w_u . h_i + noise,   noise ~ N(0, 1 / alpha),

where the rows of W and H come from the priors of posterior.py: a Gaussian around what it tells of a row that its
entries are there (Bayesian SVD++ for users, "flipped" for items: Rendle, Zhang, Koren 2019). A sweep draws, each given
the rest, H, the items' prior, W, the users' prior and alpha.

What is kept of S spread-out sweeps is H and the users' prior. A prediction is the mean over them of w_s . h_s with
w_s = E[w | H_s, ...], the exact posterior mean of a row given its history: less variance than a draw (Rao-Blackwell),
and what fold-in computes. Side by side, the S pieces are one inner product of S k columns.

The chain runs over users and items sorted by what they are connected to, not by name (initial.py), so renaming changes
nothing. Its noise comes from one generator a sweep, so it depends on neither threads nor checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import entries
from eckart.core.kernels import kernels, resolve_threads
from eckart.data.interactions import Interactions
from eckart.recommend.implied import link_matrix
from eckart.recommend.initial import colours
from eckart.recommend.metrics import rmse
from eckart.recommend.posterior import Prior, draw_noise, draw_prior, draw_rows, prior_means
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.spread import predictive_variance
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import Validate, held_out_ratings

__all__ = ["Gibbs"]

# Where the chain starts: rows of about this precision (ratings of standard deviation 1), links of this strength. It
# mixes slowly from rows or links that are too large; from too small ones the factors take long to grow.
_PRECISION, _STRENGTH = 30.0, 3.0


@dataclass(frozen=True)
class Gibbs:
    """Bayesian matrix factorization for explicit ratings, by Gibbs sampling.

    It has no penalty to tune, and it knows how sure it is: see `Recommender.predict_std` and
    `Recommender.predict_interval`.

    Parameters
    ----------
    rank : int
        Number of factors, k, of each sample.
    epochs : int
        Sweeps of the chain.
    seed : int
    threads : int, optional
        None: the cores this process may use. The result does not depend on it.
    samples : int
        Sweeps to keep, S, evenly spread; as many as there are after the burn-in where those are fewer. The model has
        S k columns a row: (n + 2 m) S k floats, 86 MB for MovieLens-1M at the defaults.
    burn_in : float, 0 <= burn_in < 1
        Share of the epochs that is thrown away first.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, seed=0)
    >>> model = ek.Gibbs(rank=4, epochs=20, samples=10).fit(data)
    >>> model.W.shape, model.H.shape
    ((200, 40), (100, 40))
    >>> low, high = model.predict_interval([0, 1], [5, 6], level=0.9)
    >>> bool((low < high).all())
    True
    """

    rank: int = 32
    epochs: int = 150
    seed: int = 0
    threads: int | None = None
    samples: int = 50
    burn_in: float = 0.2

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if self.burn_in >= 1:
            raise ValueError(f"burn_in is {self.burn_in}, expected a share of the epochs, below 1")

    @property
    def kept(self) -> np.ndarray:
        """Sweeps (from 1) whose draws are kept."""
        first = int(self.burn_in * self.epochs) + 1
        count = min(self.samples, self.epochs - first + 1)
        return np.linspace(self.epochs, first, count).round().astype(np.int64)[::-1]

    @property
    def predicts_ratings(self) -> bool:
        """Scores are on the scale of the ratings."""
        return True

    @property
    def width(self) -> int:
        """Columns of W and H: rank x samples kept."""
        return self.rank * len(self.kept)

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: of each sample, what users' rows were drawn from."""
        S, k = len(self.kept), self.rank
        return {"mean": (S, k), "precision": (S, k, k), "link": (items, S * k), "alpha": (S,)}

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Sample the posterior of the factors given the ratings.

        Parameters
        ----------
        data : Interactions
            Ratings; positive-only data are refused.
        validation : Interactions, optional
            The RMSE of the mean prediction since the burn-in is recorded after every epoch as ``validation_rmse``; ids
            unknown to `data` are left out.
        callback : callable, optional
            Called after every epoch with its record: ``objective`` is the squared error of the drawn factors on the
            training ratings, ``noise`` the drawn standard deviation of the ratings' noise.
        checkpoint : path, optional
            Directory that keeps the state after the last finished epoch, kept samples included.
        resume : bool
            Go on from the checkpoint, bit for bit; with the same `epochs`, since they say which sweeps are kept.

        Returns
        -------
        Recommender

        Raises
        ------
        ValueError
            Positive-only data, no data, a rank larger than the matrix, a checkpoint of another run.
        FloatingPointError
            A precision that is not positive definite in float32.
        """
        if not data.rated:
            raise ValueError("the data have no ratings, only pairs: use ImplicitALS (--solver implicit-als)")
        require_fit(self.rank, data)
        threads = resolve_threads(self.threads)
        by_item = data.by_item()
        user_order = np.argsort(colours(data.matrix, by_item), kind="stable")
        item_order = np.argsort(colours(by_item, data.matrix), kind="stable")
        R = _sorted(data.matrix[user_order][:, item_order])
        mean, scale = float(R.data.mean(dtype=np.float64)), float(R.data.std(dtype=np.float64)) or 1.0
        state = self._start(R.shape, scale)
        held_out = None
        if validation is not None:
            held_out = _sorted(held_out_ratings(validation, data)[user_order][:, item_order])
            state["held_out"] = np.zeros(held_out.nnz)
        validate = None if held_out is None else _rmse_to(held_out.data)
        step = self._step(R, held_out, mean, scale, threads)
        state, history = run_epochs(
            self, data, validation, state, step, validate, callback=callback, checkpoint=checkpoint, resume=resume
        )
        return self._model(data, state, item_order, mean, history)

    def solve_users(self, matrix: csr_array, items: ItemSide) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, S k) of users with the ratings in `matrix` (n, m), biases zero: S half-sweeps without noise.

        Piece s is (E[w | H_s, ...] - m_s) / S; what m_s contributes is the items' bias, what a newcomer would be told.
        """
        threads, S, k = resolve_threads(self.threads), len(self.kept), self.rank
        F = link_matrix(matrix)
        W = np.empty((matrix.shape[0], S * k), np.float32)
        for s in range(S):
            piece = slice(s * k, (s + 1) * k)
            H, prior = np.ascontiguousarray(items.H[:, piece]), _prior(items, s, k)
            alpha = float(items.extra["alpha"][s])
            x = draw_rows(matrix, items.mean, H, alpha, prior, prior_means(F, prior), None, threads)
            W[:, piece] = (x - items.extra["mean"][s]) / np.float32(S)
        return W, np.zeros(len(W), np.float32)

    def contributions(
        self, columns: np.ndarray, values: np.ndarray, target: int, items: ItemSide
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these ratings.

        With A = L + alpha sum_t y_t y_t', z = A^-1 y_target and v_t = r_t - mean, one sample scores the target
        y_target . m + sum_t [ alpha (v_t - y_t . m) (y_t . z) + n^-1/2 (b_t . L z) ]:
        one share per rating, what it says and that it is there. Both are averaged over the samples.

        Returns
        -------
        baseline : float
            mean + c_target, what a newcomer would be told.
        shares : ndarray of shape (n_u,), float64
            They add up to the score less the baseline.
        """
        S, k, n = len(self.kept), self.rank, max(len(columns), 1)
        H = items.H[columns].reshape(-1, S, k).astype(np.float64)
        B = items.extra["link"][columns].reshape(-1, S, k).astype(np.float64)
        v = values.astype(np.float64) - items.mean
        shares = np.zeros(len(columns))
        for s in range(S):
            m, L, alpha = (items.extra[name][s].astype(np.float64) for name in ("mean", "precision", "alpha"))
            Y = H[:, s]
            z = np.linalg.solve(L + alpha * Y.T @ Y, items.H[target, s * k : (s + 1) * k].astype(np.float64))
            shares += (alpha * (v - Y @ m) * (Y @ z) + n**-0.5 * (B[:, s] @ (L @ z))) / S
        return items.mean + float(items.bias[target]), shares

    def variance(
        self, W: np.ndarray, seen: csr_array, rows: np.ndarray, columns: np.ndarray, items: ItemSide, noise: bool
    ) -> np.ndarray:
        """Posterior variance of the scores of pairs, (pairs,) float64; see spread.py."""
        return predictive_variance(W, seen, rows, columns, items, self.rank, noise, resolve_threads(self.threads))

    # -- the chain -------------------------------------------------------------------------------------------------

    def _start(self, shape: tuple[int, int], scale: float) -> State:
        (n, m), k, S = shape, self.rank, len(self.kept)
        noise = np.random.default_rng([self.seed, 0]).standard_normal((n, k), dtype=np.float32)

        def prior(others: int) -> Prior:
            return Prior(np.zeros(k), np.eye(k) * _PRECISION / scale, np.zeros((others, k), np.float32), _STRENGTH)

        return {
            "sweep": np.zeros(1, np.int64),
            "epochs": np.array([self.epochs]),
            "W": noise * np.float32(0.1 * scale**0.5),
            "alpha": np.array([2 / scale**2]),
            **_packed("user", prior(m)),
            **_packed("item", prior(n)),
            "kept_H": np.zeros((m, S, k), np.float32),
            "kept_link": np.zeros((m, S, k), np.float32),
            "kept_mean": np.zeros((S, k), np.float32),
            "kept_precision": np.zeros((S, k, k), np.float32),
            "kept_alpha": np.zeros(S, np.float32),
        }

    def _step(
        self, R: csr_array, held_out: csr_array | None, mean: float, scale: float, threads: int
    ) -> Callable[[State], tuple[State, Record]]:
        by_item = _sorted(R.T.tocsr())
        of_users, of_items = link_matrix(R), link_matrix(by_item)
        users_by_item, items_by_user = _sorted(of_users.T.tocsr()), _sorted(of_items.T.tocsr())
        rows, columns = entries(R)
        kept, burnt = self.kept, int(self.burn_in * self.epochs)

        def scores(W: np.ndarray, H: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            b, c = np.zeros(len(W), np.float32), np.zeros(len(H), np.float32)
            return kernels.pair_scores(W, H, b, c, mean, rows, columns, threads)

        def step(state: State) -> tuple[State, Record]:
            if state["epochs"][0] != self.epochs:
                raise ValueError(
                    f"the checkpoint is of a run of {state['epochs'][0]} epochs, and which sweeps are kept depends on "
                    f"them: resume with as many, not {self.epochs}"
                )
            sweep = int(state["sweep"][0]) + 1
            rng = np.random.default_rng([self.seed, sweep])
            W, alpha = state["W"], float(state["alpha"][0])
            prior, item_prior = _unpacked(state, "user"), _unpacked(state, "item")
            noise = rng.standard_normal((R.shape[1], W.shape[1]), dtype=np.float32)
            H = draw_rows(by_item, mean, W, alpha, item_prior, prior_means(of_items, item_prior), noise, threads)
            next_item_prior = draw_prior(H, of_items, items_by_user, item_prior, scale, rng, threads)
            noise = rng.standard_normal(W.shape, dtype=np.float32)
            means = prior_means(of_users, prior)
            W = draw_rows(R, mean, H, alpha, prior, means, noise, threads)
            next_prior = draw_prior(W, of_users, users_by_item, prior, scale, rng, threads)

            after = dict(state)
            for s in np.flatnonzero(kept == sweep):
                # One array a run, filled in place: a copy a sweep would cost more than the sweep.
                after["kept_H"][:, s], after["kept_link"][:, s] = H, prior.link
                after["kept_mean"][s], after["kept_precision"][s] = prior.mean, prior.precision
                after["kept_alpha"][s] = alpha
            if held_out is not None:
                x = draw_rows(R, mean, H, alpha, prior, means, None, threads)
                count = max(sweep - burnt, 1)  # during the burn-in, of this sweep alone
                after["held_out"] = state["held_out"] + (scores(x, H, *entries(held_out)) - state["held_out"]) / count
            error = R.data.astype(np.float64) - scores(W, H, rows, columns)
            squares = float(error @ error)
            alpha = draw_noise(squares, R.nnz, scale, rng)
            after |= {
                "sweep": np.array([sweep]),
                "W": W,
                "alpha": np.array([alpha]),
                **_packed("user", next_prior),
                **_packed("item", next_item_prior),
            }
            return after, {"objective": squares, "noise": alpha**-0.5}

        return step

    def _model(
        self, data: Interactions, state: State, item_order: np.ndarray, mean: float, history: list[Record]
    ) -> Recommender:
        H, link = np.empty_like(state["kept_H"]), np.empty_like(state["kept_link"])
        H[item_order], link[item_order] = state["kept_H"], state["kept_link"]
        m = len(H)
        extra = {
            "mean": state["kept_mean"],
            "precision": state["kept_precision"],
            "link": link.reshape(m, -1),
            "alpha": state["kept_alpha"],
        }
        bias = np.einsum("msk,sk->m", H, state["kept_mean"], dtype=np.float64) / H.shape[1]
        items = ItemSide(H.reshape(m, -1), bias.astype(np.float32), mean, popularity_of(data.matrix), extra)
        W, user_bias = self.solve_users(data.matrix, items)
        return Recommender(self, data.users, data.items, W, user_bias, items, data.matrix, history)


def _rmse_to(truth: np.ndarray) -> Validate:
    return lambda state: ("rmse", rmse(state["held_out"], truth))


def _packed(side: str, prior: Prior) -> State:
    return {f"{side}_{name}": np.atleast_1d(value) for name, value in prior._asdict().items()}


def _unpacked(state: State, side: str) -> Prior:
    mean, precision, link, strength = (state[f"{side}_{name}"] for name in Prior._fields)
    return Prior(mean, precision, link, float(strength[0]))


def _prior(items: ItemSide, s: int, k: int) -> Prior:
    link = np.ascontiguousarray(items.extra["link"][:, s * k : (s + 1) * k])
    return Prior(items.extra["mean"][s], items.extra["precision"][s], link, 0.0)


def _sorted(matrix: csr_array) -> csr_array:
    matrix = csr_array(matrix)
    matrix.sort_indices()
    return matrix
