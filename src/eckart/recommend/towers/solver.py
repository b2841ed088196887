"""Two towers: score(i, j) = F(x_i)' G(y_j), F and G sums of free vectors and of whatever reads features.

A tower's vectors of all rows are computed once, after training, and are then the W and H of a `Recommender`: served
by the same top-k as every other model. Someone new with a history gets the row that is best against the trained H in
closed form, as implicit.py has it:

    min over w   sum_t alpha r_t (1 - w . h_t)^2 + a0 sum_i (w . h_i)^2 + l |w|^2,    l = reg (n_u + a0 m)^exponent

Trained users are hot: their rows come from training, and are not what this gives.

Symbols: a0 the unobserved weight, m items, n_u entries. See losses.py for what is minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from eckart.data.interactions import Interactions
from eckart.recommend.implicit import ImplicitALS
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, check_hyperparameters
from eckart.recommend.towers.negatives import NEGATIVES
from eckart.recommend.towers.parts import Ids, Learned, Part, parts_of
from eckart.recommend.training import Callback

if TYPE_CHECKING:
    from eckart.data.features import Features

__all__ = ["TwoTower"]

_LOSSES = ("softmax", "bpr", "ccl", "squared")
_WARM_EPOCHS = 8


@dataclass(frozen=True)
class TwoTower:
    """Two towers trained by Adam; needs the extra ``eckart[torch]``.

    Parameters
    ----------
    user, item : part or sequence of parts
        Whose sum a row's vector is: `Ids`, `MLP`, or a torch module that makes (b, rank) of (b, p) features.
    rank : int
        Length of the vectors, k.
    reg : float > 0
        Decoupled weight decay of Adam; with the squared loss, and for rows folded in, the L2 penalty of `ImplicitALS`.
    epochs : int
        Passes over the users. Adam's steps fall from `step` to 0 along half a cosine.
    seed : int
        Of starting weights, batches, draws and dropout.
    threads : int, optional
        None: the cores this process may use. Sums in torch may differ in their last bits with it.
    early_stopping : int
        Stop after so many epochs without a better NDCG@10 on the validation entries (a random tenth of the training
        entries where none are given) and keep the best epoch; 0: never.
    loss : {"softmax", "bpr", "ccl", "squared"}
        Sampled softmax with its correction, Bayesian personalised ranking, cosine contrastive loss, or the squared
        error over all cells that `ImplicitALS` minimises.
    negatives : {"uniform", "popularity", "in-batch", "hard"}
        How the items are drawn that a batch is scored against. Each is weighed by how often it was expected, so that
        only "hard" is biased, and means to be.
    draws : int
        How many are drawn per batch.
    hardest : int
        With "hard": how many of them each user keeps.
    negative_exponent : float
        With "popularity": power of an item's number of entries.
    normalize : bool, optional
        Vectors of unit length, scores are cosines. None: for softmax and ccl.
    temperature : float > 0
        Scores are divided by it in softmax and bpr.
    margin : float
        With ccl: cosines below are left alone.
    negative_weight : float
        With ccl: of the mean over the items, against 1 for an entry.
    propensity : float
        An entry weighs n_i^-propensity, scaled to a mean of 1 (not in the squared loss): against the share of
        popular items among what is seen (Saito et al. 2020). 0: alike.
    popularity : float
        Served scores have popularity * log(n_i) added, n_i the entries of the item in training: vectors of unit length
        say little of how often an item is chosen (logit adjustment, Menon et al. 2021). Of cold items it is 0.
    alpha, unobserved_weight, exponent : float
        As for `ImplicitALS`: with the squared loss, for rows folded in and for a warm start.
    warm_start : bool
        Free vectors start from the factors of eight epochs of `ImplicitALS`.
    step : float > 0
        First step of Adam.
    batch : int
        Users per batch; all of their entries are in it.
    device : str
        "auto": a GPU where torch sees one; or a device as torch calls it.
    mixed : bool
        Towers in bfloat16 on a GPU; on a CPU nothing changes.
    compile : bool
        Compile the towers by ``torch.compile``.

    Examples
    --------
    >>> import eckart as ek
    >>> ek.TwoTower(rank=32, item=(ek.Ids(), ek.MLP(hidden=(64,)))).item
    (Ids(dropout=0.0), MLP(columns=None, hidden=(64,), dropout=0.0))
    """

    user: tuple[Part, ...] = (Ids(),)
    item: tuple[Part, ...] = (Ids(),)
    rank: int = 64
    reg: float = 0.003
    epochs: int = 30
    seed: int = 0
    threads: int | None = None
    early_stopping: int = 0
    loss: str = "softmax"
    negatives: str = "uniform"
    draws: int = 2000
    hardest: int = 100
    negative_exponent: float = 0.75
    normalize: bool | None = None
    temperature: float = 0.1
    margin: float = 0.8
    negative_weight: float = 300.0
    propensity: float = 0.0
    popularity: float = 0.0
    alpha: float = 1.0
    unobserved_weight: float = 0.1
    exponent: float = 1.0
    warm_start: bool = False
    step: float = 0.01
    batch: int = 512
    device: str = "auto"
    mixed: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        object.__setattr__(self, "user", parts_of(self.user, "user"))
        object.__setattr__(self, "item", parts_of(self.item, "item"))
        for name, allowed in (("loss", _LOSSES), ("negatives", NEGATIVES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("draws", "hardest", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} is {value!r}, expected an integer")
            if not 1 <= value < 2**31:
                raise ValueError(f"{name} is {value}, expected 1 to {2**31 - 1}")
            object.__setattr__(self, name, int(value))
        for name, allowed in (
            ("normalize", (True, False, None)),
            *((flag, (True, False)) for flag in ("warm_start", "mixed", "compile")),
        ):
            if not any(getattr(self, name) is x for x in allowed):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}")
        for name in ("temperature", "step"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} is 0.0, expected a number above 0")
        if not isinstance(self.device, str):
            raise TypeError(f"device is {self.device!r}, expected 'auto' or the name of a device, such as 'cpu'")
        if self.loss == "squared" and self.negatives == "hard":
            raise ValueError('negatives is "hard", and the squared loss is over all cells: choose another')
        if self.loss == "ccl" and self.normalize is False:
            raise ValueError("normalize is False, and the loss ccl is of cosines: leave normalize out")

    @property
    def predicts_ratings(self) -> bool:
        """False: scores only rank."""
        return False

    @property
    def rows_are_trained(self) -> bool:
        """True: a trained user's row is not that of its history folded in, and says more than the history."""
        return True

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside its vectors.

        The weighted spectrum of the item vectors; of the user's own modules, their states, and the rotation from
        what they give to the model's vectors.
        """
        modules = {
            f"{side}.{index}.{name}": shape
            for side, parts in (("user", self.user), ("item", self.item))
            for index, part in enumerate(parts)
            if isinstance(part, Learned)
            for name, shape in part.shapes
        }
        return {"spectrum": (self.rank,), **modules} | ({"rotation": (self.rank, self.rank)} if modules else {})

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        user_features: Features | None = None,
        item_features: Features | None = None,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Train both towers.

        Under ``torchrun`` every process calls this with the same arguments, and all get the same model.

        Parameters
        ----------
        data : Interactions
            Pairs, counts or ratings; what counts is that an entry is there. Its value is its weight in the squared
            loss and in rows folded in, and must not be negative.
        validation : Interactions, optional
            Their NDCG@10 is recorded after every epoch as ``validation_ndcg@10``.
        user_features, item_features : Features, optional
            Of any ids; rows of `data` without features have everything missing.
        callback, checkpoint, resume
            As for `ALS.fit`. A record's ``objective`` is the loss met on the way, each batch before its step: a mean
            over entries, or with the squared loss the sum over all cells. A run is resumed with the same `epochs`.

        Returns
        -------
        Recommender
            With early stopping and no `validation`, rows come from nine tenths of the entries.

        Raises
        ------
        ImportError
            torch is not there.
        ValueError
            A negative value, no data, a rank larger than the matrix, features that are missing or that no part
            reads, a module of another width, a checkpoint of another run.
        FloatingPointError
            An objective that is not finite.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=200, items=100, entries=4000, rated=False, seed=0)
        >>> model = ek.TwoTower(rank=8, epochs=3).fit(data)  # doctest: +SKIP
        """
        try:
            import torch  # noqa: F401
        except ImportError:
            raise ImportError("TwoTower needs torch, which is not installed: pip install 'eckart[torch]'") from None
        from eckart.recommend.towers.fit import fit_towers

        return fit_towers(
            *(self, data, validation, user_features, item_features),
            callback=callback,
            checkpoint=checkpoint,
            resume=resume,
        )

    def solve_users(
        self, matrix: csr_array, items: ItemSide, points: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) of users with the entries in `matrix` (n, m), and their biases, all 0: closed form.

        `points` (n, k + 1): what the user tower says of them, which they are drawn to.
        """
        return self.rows_of().solve_users(matrix, items, points)

    def contributions(
        self,
        columns: np.ndarray,
        values: np.ndarray,
        target: int,
        items: ItemSide,
        point: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user who was folded in with these entries.

        As `ImplicitALS.contributions`. A trained user's score is no function of the history alone: the shares are
        then those that the history would carry if the user were folded in, and `Recommender.explain` puts what
        training adds to them into the baseline.
        """
        baseline, shares = self.rows_of().contributions(columns, values, target, items, point)
        return baseline + float(items.bias[target]), shares

    def rows_of(self) -> ImplicitALS:
        """Give the solver whose rows fold-in has, and whose factors a warm start."""
        return ImplicitALS(
            rank=self.rank,
            reg=self.reg,
            epochs=_WARM_EPOCHS,
            seed=self.seed,
            threads=self.threads,
            alpha=self.alpha,
            unobserved_weight=self.unobserved_weight,
            exponent=self.exponent,
            solver="exact",
        )
