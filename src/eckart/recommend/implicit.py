"""Alternating least squares for positive-only data: every cell counts, observed or not.

    min  sum over observed (u, i) of  alpha r_ui (1 - w_u . h_i)^2
         + unobserved_weight * sum over all (u, i) of (w_u . h_i)^2
         + sum_u l_u |w_u|^2 + sum_i l_i |h_i|^2,
    l_u = reg (n_u + unobserved_weight * m)^exponent,     l_i = reg (n_i + unobserved_weight * n)^exponent

The sum over all cells costs nothing: it is  w_u' (H'H) w_u  (Hu, Koren, Volinsky 2008), and in the eigenbasis of H'H
it is a diagonal (eigenbasis.py): both sides are rotated there before each half-sweep. The frequency-scaled penalty is
what makes the method competitive (Rendle, Krichene, Zhang, Koren 2021).

Symbols: n_u entries of user u; n users, m items; W (n x k), H (m x k). See docs/notation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import kernel_arrays
from eckart.core.kernels import kernels, resolve_threads
from eckart.data.interactions import Interactions
from eckart.recommend.eigenbasis import eigenbasis, spectrum
from eckart.recommend.initial import initial_factors
from eckart.recommend.recommender import Recommender
from eckart.recommend.rows import EXACT, RowMethod, require_solved, row_method
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import hold_out, ndcg_on

__all__ = ["ImplicitALS"]


@dataclass(frozen=True)
class ImplicitALS:
    """Exact implicit alternating least squares over all cells of the matrix.

    Parameters
    ----------
    rank : int
        Number of factors, k.
    reg : float > 0
        Strength of the L2 penalty.
    epochs : int
        Sweeps over items and users.
    seed : int
        Of the starting factors.
    threads : int, optional
        None: the cores this process may use. The result does not depend on it.
    alpha : float
        Weight of an observed entry, times its value (1 for positive-only data; a count or a rating otherwise,
        which must not be negative).
    unobserved_weight : float
        Weight of each of the users x items cells, pulled to 0.
    exponent : float
        Power of the frequency in a row's penalty: 1 weighs entries alike, 0 rows.
    early_stopping : int
        Stop after so many epochs without a better NDCG@10 on the validation entries (a random tenth of the
        training entries where none are given) and keep the best epoch; 0: never.
    solver : {"auto", "exact", "cg", "block"}
        How rows are solved: to the optimum, or improved by two steps of conjugate gradients or a sweep over blocks
        of 64 factors, which is quicker at large ranks. "auto" takes exact rows unless they cost three times as much.
        Users are solved exactly at the end in any case.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, rated=False, seed=0)
    >>> model = ek.ImplicitALS(rank=8, epochs=5).fit(data)
    >>> history = [record["objective"] for record in model.history]
    >>> history == sorted(history, reverse=True)
    True
    """

    rank: int = 64
    reg: float = 0.003
    epochs: int = 15
    seed: int = 0
    threads: int | None = None
    alpha: float = 1.0
    unobserved_weight: float = 0.1
    exponent: float = 1.0
    early_stopping: int = 0
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_hyperparameters(self)

    @property
    def predicts_ratings(self) -> bool:
        """False: scores only rank."""
        return False

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: the weighted spectrum of the item factors."""
        return {"spectrum": (self.rank,)}

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Fit to the observed entries and, weakly, to 0 everywhere.

        Parameters
        ----------
        data : Interactions
            Positive-only data, counts or ratings; none may be negative.
        validation : Interactions, optional
            Their NDCG@10 is recorded after every epoch as ``validation_ndcg@10``.
        callback, checkpoint, resume
            As for `ALS.fit`.

        Returns
        -------
        Recommender

        Raises
        ------
        ValueError
            A negative value, no data, a rank larger than the matrix, a checkpoint of another run.
        FloatingPointError
            A system that is not positive definite in float32, or an objective that is not finite.
        """
        everything = data
        if validation is None and self.early_stopping:
            data, validation = hold_out(data, self.seed)
        require_fit(self.rank, data)
        threads = resolve_threads(self.threads)
        R = data.matrix
        require_not_negative(R)
        by_item = data.by_item()
        method = row_method(self, R, by_item)
        reg_users, reg_items = self._row_reg(R), self._row_reg(by_item)

        weight = self.unobserved_weight

        def solved(
            matrix: csr_array, Y: np.ndarray, X: np.ndarray, reg: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, float]:
            # X anew, given Y; both come back in Y's eigenbasis.
            Q = eigenbasis(Y, threads)
            Y = kernels.rotate(Y, Q, threads)
            start = None if method == EXACT else kernels.rotate(X, Q, threads)
            X, objective = half_sweep(matrix, Y, self.alpha, spectrum(Y, weight), reg, threads, method, start)
            return X, Y, objective

        def step(state: State) -> tuple[State, Record]:
            H, W, _ = solved(by_item, state["W"], state["H"], reg_items)
            W, H, objective = solved(R, H, W, reg_users)
            penalty = reg_items @ np.sum(H.astype(np.float64) ** 2, axis=1)
            return {"W": W, "H": H}, {"objective": float(objective + penalty)}

        validate = None if validation is None else ndcg_on(validation, data, lambda s: self._model(s, data, []))
        start = {
            "W": initial_factors(R, by_item, self.rank, self.seed),
            "H": np.zeros((R.shape[1], self.rank), np.float32),
        }
        state, history = run_epochs(
            self, data, validation, start, step, validate, callback=callback, checkpoint=checkpoint, resume=resume
        )
        model = self._model(state, data, history)
        # Users are solved exactly at the end, whatever the epochs did: a row is then its history folded in.
        return model if data is everything and method == EXACT else model.with_all(everything)

    def _model(self, state: State, data: Interactions, history: list[Record]) -> Recommender:
        n, m = data.matrix.shape
        return Recommender(
            solver=self,
            users=data.users,
            items=data.items,
            W=state["W"],
            user_bias=np.zeros(n, np.float32),
            item_side=ItemSide(
                state["H"],
                np.zeros(m, np.float32),
                0.0,
                popularity_of(data.matrix),
                {"spectrum": spectrum(state["H"], self.unobserved_weight)},
            ),
            seen=data.matrix,
            history=history,
        )

    def solve_users(self, matrix: csr_array, items: ItemSide) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) of users with the entries in `matrix` (n, m), and their biases, all 0."""
        require_not_negative(matrix)
        threads = resolve_threads(self.threads)
        W, _ = half_sweep(matrix, items.H, self.alpha, items.extra["spectrum"], self._row_reg(matrix), threads)
        return W, np.zeros(len(W), np.float32)

    def contributions(
        self, columns: np.ndarray, values: np.ndarray, target: int, items: ItemSide
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these entries.

        The user's row is A^-1 sum_t w_t h_t with A = a0 H'H + sum_t w_t h_t h_t' + l_u I, so the score is
        sum_t w_t (h_target' A^-1 h_t): one share per entry, and a baseline of 0 (Hu et al. 2008, section 5).
        """
        H = items.H.astype(np.float64)
        Y, w = H[columns], self.alpha * values.astype(np.float64)
        reg = self.reg * (len(columns) + self.unobserved_weight * len(H)) ** self.exponent
        A = self.unobserved_weight * (H.T @ H) + (Y.T * w) @ Y + reg * np.eye(H.shape[1])
        return 0.0, w * (Y @ np.linalg.solve(A, H[target]))

    def _row_reg(self, matrix: csr_array) -> np.ndarray:
        frequency = np.diff(matrix.indptr) + self.unobserved_weight * matrix.shape[1]
        with np.errstate(over="ignore"):  # an infinite penalty is reported with the row that fails
            return (self.reg * frequency**self.exponent).astype(np.float32)


def half_sweep(
    matrix: csr_array,
    Y: np.ndarray,
    alpha: float,
    spectrum: np.ndarray,
    reg: np.ndarray,
    threads: int,
    method: RowMethod = EXACT,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Solve every row of `matrix` (n, m) for its factors, the columns' Y (m, k) being given in their eigenbasis.

    Parameters
    ----------
    matrix : csr_array of shape (n, m), float32
    Y : ndarray of shape (m, k), float32
    alpha : float
    spectrum : ndarray of shape (k,), float32
        Of the term that pulls every cell to 0, see eigenbasis.py.
    reg : ndarray of shape (n,), float32
        Penalty of each row.
    threads : int
    method : RowMethod
        How rows are solved.
    start : ndarray of shape (n, k), float32, optional
        Where the iterative methods start; 0 when not given.

    Returns
    -------
    X : ndarray of shape (n, k), float32
    objective : float
        The loss over all cells and the rows' own penalty, at X.

    Raises
    ------
    FloatingPointError
        A system that is not positive definite in float32.
    """
    X, objective, failed = kernels.implicit_rows(
        *kernel_arrays(matrix),
        Y,
        alpha,
        reg,
        threads,
        spectrum=spectrum,
        method=method.name,
        steps=method.steps,
        start=None if method == EXACT else start,
    )
    require_solved(failed, reg)
    return X, float(objective.sum())


def require_not_negative(matrix: csr_array) -> None:
    """Raise ValueError when an entry is negative: a weight cannot be."""
    if matrix.nnz and matrix.data.min() < 0:
        raise ValueError(f"a value is {matrix.data.min():g}, a weight cannot be negative: use ALS for such ratings")
