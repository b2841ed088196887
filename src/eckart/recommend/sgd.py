"""Stochastic gradient descent for ratings or for pairs, parallel and reproducible.

    min  sum over observed (u, i) of (r_ui - mean - b_u - c_i - w_u . h_i)^2 + reg (|w_u|^2 + b_u^2 + |h_i|^2 + c_i^2)

The penalty counts once an entry, so a user with n_u ratings pays reg n_u |w_u|^2: the objective of `ALS` with
exponent 1. An epoch visits every entry once, over a B x B grid of blocks (kernels/sgd.cpp): B depends on the data's
shape and the rank, never on the threads, and users and items are dealt to blocks by their degree and by a hash of
their ratings, so neither threads nor names change the result.

After the last epoch every user's row is solved exactly, given the items (half a sweep of ALS): folding in a user's
own history then gives its row back, and an explanation adds up.

With ``loss="logistic"``, for positive-only data, an entry is 1 and for each about `negatives` cells drawn evenly from
the catalogue are 0, by the score s_ui = c_i + w_u . h_i (Johnson 2014; a user's bias would not rank):

    min  sum over observed  log(1 + exp(-s_ui)) + sum over drawn  log(1 + exp(s_ui))
         + reg / 2 (|w_u|^2 + |h_i|^2 + c_i^2) for each of either

Observed cells may be drawn too, which biases the score: a cell of user u is drawn q_u = negatives n_u / m times on
average, and one that is observed with probability P has its optimum at log(P / q_u), not at log(P / (1 - P) / q_u) as
where only unobserved cells are drawn. Either rises with P and q_u shifts all of a user: the ranks stay.
The last solve (kernels/logistic_rows.cpp) takes the mean over the draws: every cell of the user, weighted q_u.

Symbols: place, where the dealing puts a user or an item. See docs/notation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import kernel_arrays
from eckart.core.kernels import kernels, resolve_threads
from eckart.data.interactions import Interactions
from eckart.recommend.als import ALS
from eckart.recommend.initial import colours
from eckart.recommend.recommender import Recommender
from eckart.recommend.rows import require_solved
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import hold_out, ndcg_on, rmse_on

__all__ = ["SGD"]

_BLOCK_BYTES = 1 << 19  # of item factors in a block: half of a second-level cache of 1 MB
_FOLD_IN_STEPS = 32  # of the last solve with the logistic loss


@dataclass(frozen=True)
class SGD:
    """Stratified block SGD for ratings or for pairs: epochs an order cheaper than those of `ALS`, more of them needed.

    Parameters
    ----------
    rank : int
        Number of factors, k.
    reg : float > 0
        Strength of the L2 penalty, per rating.
    epochs : int
        Passes over the ratings.
    seed : int
        Of the starting factors and of the order in which ratings are visited.
    threads : int, optional
        None: the cores this process may use. The result does not depend on it.
    step : float > 0
        First step of a vector; it then falls with the root of the squared errors the vector has seen.
    early_stopping : int
        Stop after so many epochs without a better RMSE on the validation ratings (a random tenth of the training
        ratings where none are given) and keep the best epoch; 0: never. NDCG@10 with the logistic loss.
    loss : {"squared", "logistic"}
        Of ratings, and of positive-only data.
    negatives : float > 0
        Cells drawn as 0 per entry, with the logistic loss; at most 1000.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, seed=0)
    >>> model = ek.SGD(rank=8, epochs=5).fit(data)
    >>> model.W.shape, model.H.shape, len(model.history)
    ((200, 8), (100, 8), 5)
    """

    rank: int = 64
    reg: float = 0.05
    epochs: int = 20
    seed: int = 0
    threads: int | None = None
    step: float = 0.05
    early_stopping: int = 0
    loss: str = "squared"
    negatives: float = 4.0

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if self.step == 0:
            raise ValueError("step is 0.0, expected a number above 0")
        if self.loss not in ("squared", "logistic"):
            raise ValueError(f"loss is {self.loss!r}, expected 'squared' or 'logistic'")
        if not 0 < self.negatives <= 1000:
            raise ValueError(f"negatives is {self.negatives}, expected a number above 0, at most 1000")

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    @property
    def predicts_ratings(self) -> bool:
        """Whether scores are on the scale of the ratings: those of the logistic loss only rank."""
        return self.loss == "squared"

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: none."""
        return {}

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Fit to the observed ratings or pairs.

        Parameters
        ----------
        data : Interactions
            Ratings; positive-only data for the logistic loss, to which their values do not count.
        validation : Interactions, optional
            Their RMSE is recorded after every epoch as ``validation_rmse``, with the users as the epoch left them,
            that is before they are solved exactly; ids unknown to `data` are left out. With the logistic loss it
            is ``validation_ndcg@10``.
        callback, checkpoint, resume
            As for `ALS.fit`. A record's ``objective`` is the sum of the squared errors met on the way, each before
            its update, and of the penalty at the end of the epoch.

        Returns
        -------
        Recommender

        Raises
        ------
        ValueError
            Data for the other loss, no data, a rank larger than the matrix, a checkpoint of another run.
        FloatingPointError
            An objective that is not finite, or a user's system that is not positive definite in float32.
        """
        logistic = self.loss == "logistic"
        if not data.rated and not logistic:
            raise ValueError(
                'the data have no ratings, only pairs: use loss="logistic" (-s loss=logistic) or ImplicitALS '
                "(--solver implicit-als)"
            )
        if data.rated and logistic:
            raise ValueError('the data have ratings, loss="logistic" is for pairs: use loss="squared" or ImplicitALS')
        everything = data
        if validation is None and self.early_stopping:
            data, validation = hold_out(data, self.seed)
        require_fit(self.rank, data)
        threads, R = resolve_threads(self.threads), data.matrix
        mean = 0.0 if logistic else float(R.data.mean(dtype=np.float64))
        deal = _deal(R, data.by_item(), _grid_size(R.shape, self.rank), self.seed)
        entries = deal.lay_out(R, threads)
        n_u = np.diff(R.indptr)[deal.user_at].astype(np.float64)
        n_i = np.bincount(R.indices, minlength=R.shape[1])[deal.item_at].astype(np.float64)
        if logistic:  # draws are penalised too; by a half, as the loss is not a square
            n_u, n_i = n_u * (1 + self.negatives) / 2, (n_i + self.negatives * R.nnz / R.shape[1]) / 2

        def step(state: State) -> tuple[State, Record]:
            if self.early_stopping:  # the best epoch's state must outlive the next epochs
                state = {name: array.copy() for name, array in state.items()}
            W, H, users, items = state["W"], state["H"], state["users"], state["items"]
            epoch = int(state["epoch"][0])
            strata = np.random.default_rng([self.seed, 1, epoch]).permutation(deal.blocks).astype(np.int32)
            loss = kernels.sgd_epoch(
                *(deal.user_bounds, deal.item_bounds, *entries, strata, W, H, users, items),
                *(self.rank, mean, self.reg, self.step, threads),
                negatives=self.negatives if logistic else 0.0,
                draw=int(np.random.SeedSequence([self.seed, 3, epoch]).generate_state(1, np.uint64)[0]),
            )
            penalty = self.reg * (n_u @ _squares(W, users) + n_i @ _squares(H, items))
            return {**state, "epoch": state["epoch"] + 1}, {"objective": float(loss + penalty)}

        def item_side(state: State) -> ItemSide:
            H = np.ascontiguousarray(state["H"][deal.place_of_item, : self.rank])
            return ItemSide(H, np.ascontiguousarray(state["items"][deal.place_of_item, 0]), mean, popularity_of(R))

        def model(W: np.ndarray, user_bias: np.ndarray, side: ItemSide, history: list[Record]) -> Recommender:
            return Recommender(
                solver=self,
                users=data.users,
                items=data.items,
                W=W,
                user_bias=user_bias,
                item_side=side,
                seen=R,
                history=history,
            )

        def as_ranked(state: State) -> Recommender:
            W = np.ascontiguousarray(state["W"][deal.place_of_user, : self.rank])
            return model(W, np.zeros(len(W), np.float32), item_side(state), [])

        def scores(state: State, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            users, items = state["users"][:, 0].copy(), state["items"][:, 0].copy()
            places = deal.place_of_user[rows].astype(np.int64), deal.place_of_item[columns].astype(np.int64)
            return kernels.pair_scores(state["W"], state["H"], users, items, mean, *places, threads)

        validate = None
        if validation is not None:
            validate = ndcg_on(validation, data, as_ranked) if logistic else rmse_on(validation, data, scores)
        state, history = run_epochs(
            self,
            data,
            validation,
            _start(R.shape, self.rank, self.seed),
            step,
            validate,
            callback=callback,
            checkpoint=checkpoint,
            resume=resume,
        )
        side = item_side(state)
        fitted = model(*self.solve_users(R, side), side, history)
        return fitted if data is everything else fitted.with_all(everything)

    def solve_users(self, matrix: csr_array, items: ItemSide) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) and biases (n,) of users with the entries in `matrix` (n, m).

        One user half-sweep of ALS; with the logistic loss, 32 steps from 0 towards the minimum over all cells.
        """
        if self.loss == "logistic":
            n_u = np.diff(matrix.indptr)
            cell = (self.negatives * n_u / matrix.shape[1]).astype(np.float32)
            with np.errstate(over="ignore"):  # an infinite penalty is reported with the row that fails
                reg = (self.reg * (1 + self.negatives) * n_u).astype(np.float32)
            W, failed = kernels.logistic_rows(
                *kernel_arrays(matrix),
                items.H,
                items.bias,
                cell,
                reg,
                _FOLD_IN_STEPS,
                resolve_threads(self.threads),
            )
            require_solved(failed, reg)
            return W, np.zeros(len(W), np.float32)
        return self._rows_of().solve_users(matrix, items)

    def contributions(
        self, columns: np.ndarray, values: np.ndarray, target: int, items: ItemSide
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these entries.

        With the squared loss as `ALS.contributions` does. With the logistic loss p = 1/2 + a s, a = tanh(s/2) / (2 s),
        makes the row at its minimum the solution of a linear system (Jaakkola and Jordan 2000),

            B x = sum_t (1 - p_t) h_t - q sum_i (1/2 + a_i c_i) h_i,    B = l_u I + q sum_i a_i h_i h_i',

        so entry t carries (1 - p_t) h_target' B^-1 h_t, and the baseline what is left: the item's bias, the cells.
        """
        if self.loss == "logistic":
            if not len(columns):
                return float(items.bias[target]), np.zeros(0)
            one = csr_array((values, columns, np.array([0, len(columns)])), shape=(1, len(items.H)))
            x = self.solve_users(one, items)[0][0].astype(np.float64)
            H, c = items.H.astype(np.float64), items.bias.astype(np.float64)
            half = (H @ x + c) / 2
            slope = np.where(np.abs(half) < 1e-6, 0.25, np.tanh(half) / np.where(half == 0, 1, 4 * half))
            cell = self.negatives * len(columns) / len(H)
            reg = self.reg * (1 + self.negatives) * len(columns)
            B = cell * (H.T * slope) @ H + reg * np.eye(H.shape[1])
            shares = (1 - np.tanh(half[columns])) / 2 * (H[columns] @ np.linalg.solve(B, H[target]))
            return float(H[target] @ x + c[target] - shares.sum()), shares
        return self._rows_of().contributions(columns, values, target, items)

    def _rows_of(self) -> ALS:
        return ALS(rank=self.rank, reg=self.reg, threads=self.threads, exponent=1.0)


class _Deal(NamedTuple):
    """Who stands where: user_at[place] and place_of_user[user] are inverse, and alike for items."""

    user_at: np.ndarray  # (n,) int32
    place_of_user: np.ndarray
    user_bounds: np.ndarray  # (B + 1,) int64, the places of each block
    item_at: np.ndarray
    place_of_item: np.ndarray
    item_bounds: np.ndarray

    @property
    def blocks(self) -> int:
        return len(self.user_bounds) - 1

    def lay_out(self, R: csr_array, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entries by block, user place and item place: (starts, item places, values)."""
        return kernels.sgd_layout(
            *kernel_arrays(R), self.user_bounds, self.item_bounds, self.user_at, self.place_of_item, threads
        )


def _grid_size(shape: tuple[int, int], rank: int) -> int:
    """B: so many blocks that a block's item factors fit the cache, at least 8 and at most 32 where there are as many.

    Examples
    --------
    >>> _grid_size((138493, 26744), 64), _grid_size((138493, 26744), 128), _grid_size((5, 3), 2)
    (14, 27, 3)
    """
    wanted = -(-shape[1] * rank * 4 // _BLOCK_BYTES)
    return max(1, min(max(8, min(wanted, 32)), *shape))


def _deal(R: csr_array, by_item: csr_array, blocks: int, seed: int) -> _Deal:
    user_colours, item_colours = colours(R, by_item), colours(by_item, R)
    rng = np.random.default_rng([seed, 0])
    users = _dealt(np.diff(R.indptr), user_colours, blocks, rng)
    items = _dealt(np.bincount(R.indices, minlength=R.shape[1]), item_colours, blocks, rng)
    return _Deal(*users, *items)


def _dealt(
    degree: np.ndarray, colour: np.ndarray, blocks: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal rows to blocks of about equal entries, there and back by degree, and shuffle them within each block."""
    count = len(degree)
    by_degree = np.lexsort((colour, -degree))
    turn, block = np.divmod(np.arange(count), blocks)
    block = np.where(turn % 2, blocks - 1 - block, block)
    at = by_degree[np.lexsort((rng.permutation(count), block))].astype(np.int32)
    place_of = np.empty(count, np.int32)
    place_of[at] = np.arange(count, dtype=np.int32)
    return at, place_of, np.concatenate(([0], np.cumsum(np.bincount(block, minlength=blocks)))).astype(np.int64)


def _start(shape: tuple[int, int], rank: int, seed: int) -> State:
    """Gaussian factors of standard deviation 0.3 / sqrt(rank), by place, in rows of whole cache lines; no bias yet."""
    rng = np.random.default_rng([seed, 2])
    state: State = {"epoch": np.zeros(1, np.int64)}
    for count, factors, scalars in zip(shape, "WH", ("users", "items"), strict=True):
        state[factors] = np.zeros((count, -(-rank // 16) * 16), np.float32)
        noise = rng.standard_normal((count, rank), dtype=np.float32)
        state[factors][:, :rank] = np.float32(0.3 / np.sqrt(rank)) * noise
        state[scalars] = np.zeros((count, 2), np.float32)  # bias, sum of squared errors
    return state


def _squares(factors: np.ndarray, scalars: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", factors, factors) + scalars[:, 0].astype(np.float64) ** 2
