"""The truncated SVD as a recommender: one step, closed form, no penalty.

Three matrices M, each cut to its best rank-k approximation U S V' (core/svd.py):

- ratings: M = what is left of them after mean, item and user means, and 0 where nothing was rated, so that an
  unknown rating is taken to be what the means say. On a fully observed matrix that is the Eckart-Young optimum of
  the centred matrix; with unknown cells it is PureSVD (Cremonesi, Koren, Turrin 2010), which ranks well and shrinks
  its ratings towards the means: for the best RMSE use ALS.
- interactions: M = R, with 0 where nothing happened.
- ``normalize=True``: M = D_u^-e R D_i^-1/2, D the numbers of entries of users and items (e = 1/2: the normalised
  graph), and items weighed again with an exponent of their own (Shen et al. 2021, and Peng, Sugiyama, Mine 2022, who
  keep the head of the spectrum):

      scores = R D_i^-a V S^p V' D_i^a

Every score is h_i . w_u with  w_u = sum_t v_t d_t^-2a h_t,  h_i = d_i^a S^(p/2) v_i:  linear in the user's history,
so a new user costs one sparse row, and an explanation is its own derivation. Plain: a = p = 0.

Symbols: v_t the entries of a user's row of M; h_i item factors H (m x k); d_i entries of item i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import entries
from eckart.core.kernels import resolve_threads
from eckart.core.krylov import krylov_svd, operator
from eckart.core.svd import TruncatedSVD, truncated_svd
from eckart.data.interactions import Interactions
from eckart.recommend.implicit import require_not_negative
from eckart.recommend.initial import initial_factors
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.training import Callback, Record
from eckart.recommend.validation import ndcg_on, rmse_on

__all__ = ["SVD"]

_EXACT = 10**9  # n m min(n, m) up to which the whole SVD is taken: a second or two
_START = 64  # columns of noise, as many as `krylov_svd` takes at most


@dataclass(frozen=True)
class SVD:
    """Truncated singular value decomposition of ratings, of interactions, or of the normalised interaction graph.

    Parameters
    ----------
    rank : int
        Number of singular directions kept, k.
    seed : int
        Of the random block that a large matrix is approached with; a small one is decomposed exactly.
    threads : int, optional
        None: the cores this process may use. The result does not depend on it.
    center : bool, optional
        Whether to remove mean, item and user means and predict ratings; else scores only rank. None: where the data
        have ratings, unless `normalize`.
    normalize : bool
        Divide each entry by powers of its user's and its item's number of entries.
    user_exponent : float >= 0
        e: with `normalize`, how much an entry of a user with many counts less in finding the directions.
    item_exponent : float >= 0
        a: with `normalize`, the power of an item's number of entries that its scores are multiplied by. More is more
        popular.
    power : float >= 0
        p: with `normalize`, the power of the singular values in the scores; 0 weighs all k directions alike.
    basis : int >= rank, optional
        Dimension of the Krylov space that a large matrix is approached in: more comes closer to the last of the k
        directions. None: rank + rank // 3 + 64.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, rated=False, seed=0)
    >>> model = ek.SVD(rank=8, normalize=True).fit(data)
    >>> model.W.shape, model.H.shape, sorted(model.history[0])
    ((200, 8), (100, 8), ['bound', 'captured', 'epoch', 'objective'])
    """

    rank: int = 64
    seed: int = 0
    threads: int | None = None
    center: bool | None = None
    normalize: bool = False
    user_exponent: float = 0.5
    item_exponent: float = 0.4
    power: float = 1.0
    basis: int | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        for name, allowed in (("center", (True, False, None)), ("normalize", (True, False))):
            if not any(getattr(self, name) is x for x in allowed):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}")
        if self.basis is not None:
            if isinstance(self.basis, bool) or not isinstance(self.basis, (int, np.integer)):
                raise TypeError(f"basis is {self.basis!r}, expected an integer or None")
            if not self.rank <= self.basis < 2**31:
                raise ValueError(f"basis is {self.basis}, expected the rank, {self.rank}, to {2**31 - 1}")
            object.__setattr__(self, "basis", int(self.basis))
        if self.center and self.normalize:
            raise ValueError("center and normalize are both true: center is for ratings, normalize for interactions")

    @property
    def predicts_ratings(self) -> bool:
        """Whether scores are on the scale of the ratings; a fitted model's solver has `center` decided."""
        return not self.normalize if self.center is None else self.center

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: what each entry counts, d^-2a, where items are weighed."""
        return {"entry_weight": (items,)} if self.normalize else {}

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Fit to the entries.

        Parameters
        ----------
        data : Interactions
        validation : Interactions, optional
            Their RMSE (centred) or NDCG@10 is recorded; ids unknown to `data` are left out.
        callback : callable, optional
            Called once, with the one record of the history.
        checkpoint, resume
            Refused: there is nothing between the start and the end.

        Returns
        -------
        Recommender
            The one record of its history has ``objective``, ||M - U S V'||_F^2; ``captured``, the share of ||M||_F^2
            in U S V'; and ``bound``, which the spectral norm of the error does not exceed (with probability
            1 - 1e-10 for a large matrix).

        Raises
        ------
        ValueError
            `center` without ratings, a negative entry with `normalize`, no data, a rank larger than the matrix, or a
            checkpoint.
        """
        if checkpoint is not None or resume:
            raise ValueError("svd is fitted in one step and has nothing to resume: leave checkpoint out")
        if self.center and not data.rated:
            raise ValueError("the data have no ratings, only pairs: leave center out")
        require_fit(self.rank, data)
        solver = dataclasses.replace(self, center=data.rated and self.predicts_ratings)
        threads, R = resolve_threads(self.threads), data.matrix
        n, m = R.shape
        mean, item_bias, M = 0.0, np.zeros(m, np.float32), R
        extra: Mapping[str, np.ndarray] = MappingProxyType({})
        d = _counts(R.indices, m)
        if solver.center:
            mean = float(R.data.mean(dtype=np.float64))
            item_bias = _row_means(data.by_item(), mean, np.zeros(n, np.float32))
            M = _with_values(R, _deviations(R, mean, item_bias, _row_means(R, mean, item_bias)))
        elif self.normalize:
            require_not_negative(R)
            rows = data.user_rows()
            M = _with_values(R, R.data / (_counts(rows, n)[rows] ** self.user_exponent * d[R.indices] ** 0.5))
            extra = {"entry_weight": (d ** (-2 * self.item_exponent)).astype(np.float32)}
        found = _decomposed(M, self.rank, self.basis, self.seed, threads)
        H = found.V
        if self.normalize:
            H *= (d**self.item_exponent).astype(np.float32)[:, None]
            H *= (found.s ** (self.power / 2)).astype(np.float32)
        side = ItemSide(np.ascontiguousarray(H), item_bias, mean, popularity_of(R), extra)
        W, user_bias = solver.solve_users(R, side)
        captured = 1 - found.residual / found.squares if found.squares else 1.0
        record: Record = {"epoch": 1, "objective": found.residual, "captured": captured, "bound": found.bound}
        model = Recommender(solver, data.users, data.items, W, user_bias, side, R, [record])
        if validation is not None:
            if model.predicts_ratings:
                name, value = rmse_on(validation, data, lambda _, rows, columns: model.static_scores(rows, columns))({})
            else:
                name, value = ndcg_on(validation, data, lambda _: model)({})
            record[f"validation_{name}"] = value
        if callback is not None:
            callback(dict(record))
        return model

    def solve_users(self, matrix: csr_array, items: ItemSide) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) and biases (n,) of users with the entries in `matrix` (n, m): one sparse product."""
        bias = np.zeros(matrix.shape[0], np.float32)
        if self.center:
            bias = _row_means(matrix, items.mean, items.bias)
            values = _deviations(matrix, items.mean, items.bias, bias)
        elif self.normalize:
            require_not_negative(matrix)
            values = matrix.data * items.extra["entry_weight"][matrix.indices]
        else:
            values = matrix.data
        threads = resolve_threads(self.threads)
        return operator(_with_values(matrix, values), threads=threads).times(items.H), bias

    def contributions(
        self, columns: np.ndarray, values: np.ndarray, target: int, items: ItemSide
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these entries: (baseline, a share per entry).

        An entry's share is v_t d_t^-2a (h_t . h_target). Centred, with x_t = r_t - mean - c_t, the user's bias is the
        mean of x and v_t = x_t - bias: the share is  x_t (1/n + h_t . h_target - mean_s h_s . h_target).
        """
        product = items.H[columns].astype(np.float64) @ items.H[target].astype(np.float64)
        v = values.astype(np.float64)
        if self.center:
            x = v - items.mean - items.bias[columns]
            baseline = items.mean + float(items.bias[target])
            return baseline, x * (1 / len(x) + product - product.mean()) if len(x) else x
        return 0.0, v * product * (items.extra["entry_weight"][columns] if self.normalize else 1)


def _decomposed(M: csr_array, rank: int, basis: int | None, seed: int, threads: int) -> TruncatedSVD:
    n, m = M.shape
    if n * m * min(n, m) <= _EXACT:
        return truncated_svd(M.toarray(), rank)
    by_item = csr_array(M.T.tocsr())
    # Noise on the longer side that does not depend on ids.
    start = initial_factors(*((M, by_item) if n > m else (by_item, M)), _START, seed)
    dense = M.nnz == n * m
    A = operator(M.toarray()) if dense else operator(M, transpose=by_item, threads=threads)
    return krylov_svd(A, rank, basis=basis, start=start, seed=seed)


def _counts(rows: np.ndarray, size: int) -> np.ndarray:
    """Number of entries of each row, (size,) float64, at least 1: what is empty is divided by nothing."""
    return np.maximum(np.bincount(rows, minlength=size), 1).astype(np.float64)


def _row_means(matrix: csr_array, mean: float, column_bias: np.ndarray) -> np.ndarray:
    """Mean of r - mean - c over each row's entries, (n,) float32; 0 for an empty row."""
    rows, columns = entries(matrix)
    n = np.diff(matrix.indptr)
    total = np.bincount(rows, matrix.data - mean - column_bias[columns].astype(np.float64), len(n))
    return (total / np.maximum(n, 1)).astype(np.float32)


def _deviations(matrix: csr_array, mean: float, column_bias: np.ndarray, row_bias: np.ndarray) -> np.ndarray:
    """r - mean - c - b of every entry, summed in float64."""
    b = np.repeat(row_bias.astype(np.float64), np.diff(matrix.indptr))
    return matrix.data - mean - column_bias[matrix.indices] - b


def _with_values(matrix: csr_array, values: np.ndarray) -> csr_array:
    return csr_array((values.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
