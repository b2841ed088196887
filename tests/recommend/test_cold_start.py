"""Three protocols in one call: who is held out, what the model is told, and what features are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.sparse import csr_array

import eckart as ek
from eckart.recommend.metrics import ranking_metrics
from eckart.recommend.random_order import random_order

USERS, ITEMS, GROUPS = 120, 90, 3


def made(seed: int = 0) -> tuple[ek.Interactions, ek.Features, ek.Features]:
    """Users who like the items of their own group, all called by names, and features that tell the groups."""
    rng = np.random.default_rng(seed)
    u, i = np.nonzero(
        rng.random((USERS, ITEMS)) < np.where(np.arange(USERS)[:, None] % 3 == np.arange(ITEMS) % 3, 0.45, 0.03)
    )
    data = ek.read({"user": [f"u{x}" for x in u], "item": [f"i{x}" for x in i]})
    groups = ["north", "south", "west"]
    people = {"user": [f"u{x}" for x in range(USERS)], "home": [groups[x % 3] for x in range(USERS)]}
    things = {"item": [f"i{x}" for x in range(ITEMS)], "kind": [groups[x % 3] for x in range(ITEMS)]}
    return data, ek.read_features(people), ek.read_features(things)


@dataclass(frozen=True)
class Spy:
    """Fits as ImplicitALS does, and keeps what it was given."""

    solver: ek.ImplicitALS
    calls: list

    def fit(self, data, *, user_features=None, item_features=None):
        self.calls.append((data, user_features, item_features))
        return self.solver.fit(data, user_features=user_features, item_features=item_features)


SOLVER = ek.ImplicitALS(rank=4, epochs=4, threads=1)


def test_nobody_who_is_held_out_is_learnt_from():
    data, people, things = made()
    spy = Spy(SOLVER, [])
    result = ek.cold_start(spy, data, user_features=people, item_features=things, share=0.2)
    ((train, told_people, told_things),) = spy.calls
    assert (len(train.users), len(train.items)) == (0.8 * USERS, 0.8 * ITEMS)
    assert not np.setdiff1d(told_people.ids.ids, train.users.ids).size
    assert not np.setdiff1d(told_things.ids.ids, train.items.ids).size
    both = [data.user_rows(), data.matrix.indices]
    trained = [(train.users.rows(data.users.ids) >= 0)[both[0]], (train.items.rows(data.items.ids) >= 0)[both[1]]]
    asked = [result[name]["entries"] for name in ("warm", "cold items", "cold users")]
    left = int((trained[0] & trained[1]).sum())
    assert asked == [left - train.nnz, int((trained[0] & ~trained[1]).sum()), int((~trained[0] & trained[1]).sum())]
    for name in ("warm", "cold items", "cold users"):
        odd = [result[name][x] for x in ("seen_entries", "unknown_users", "unknown_item_entries")]
        assert odd == [0, 0, 0], name


def test_one_side_alone_holds_out_that_side_alone():
    data, people, things = made()
    spy = Spy(SOLVER, [])
    assert [n for n in ek.cold_start(spy, data, item_features=things) if ":" not in n] == ["warm", "cold items"]
    assert [n for n in ek.cold_start(spy, data, user_features=people) if ":" not in n] == ["warm", "cold users"]
    (items_only, *given), (users_only, *other) = spy.calls
    assert (len(items_only.users), len(users_only.items)) == (USERS, ITEMS)
    assert given[0] is None
    assert other[1] is None


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    data, people, things = made()
    first, same, other = (
        ek.cold_start(SOLVER, data, user_features=people, item_features=things, seed=s, intervals=0.9).to_dict()
        for s in (1, 1, 2)
    )
    assert first == same != other
    assert set(first["cold items"]["intervals"]) >= {"ndcg@10", "recall@10"}


def test_features_that_tell_something_help_and_others_do_not():
    data, people, things = made()
    told = ek.cold_start(SOLVER, data, user_features=people, item_features=things, k=5)
    for name, baseline in (("cold items", "random order"), ("cold users", "popularity")):
        assert told[name]["ndcg@5"] > 1.5 * told[f"{name}: {baseline}"]["ndcg@5"]
    rng = np.random.default_rng(0)
    noise = {"item": [f"i{x}" for x in range(ITEMS)], "kind": rng.permutation(["a", "b", "c"] * 30)}
    ratios = []
    for seed in range(4):
        nothing = ek.cold_start(SOLVER, data, item_features=ek.read_features(noise), seed=seed, k=5)
        ratios.append(nothing["cold items"]["ndcg@5"] / nothing["cold items: random order"]["ndcg@5"])
    assert 0.6 < np.mean(ratios) < 1.4


def test_with_ratings_and_a_threshold():
    data = ek.synthetic(100, 60, 2500, seed=0)
    things = ek.read_features({"item": list(range(60)), "weight": np.arange(60.0)})
    result = ek.cold_start(ek.ALS(rank=3, epochs=3, threads=1), data, item_features=things, relevant=4.0)
    assert result["cold items"]["rmse"] > 0
    assert result["cold items"]["targets"] == result["cold items: random order"]["targets"]
    assert result["cold items"]["targets"] < result["cold items"]["entries"]


def cold_targets(data, relevant):
    """What trained users have of the items that `cold_start` holds out with its defaults."""
    rest, of_items = ek.split(data, 0.2, by="item", seed=0)
    train, _ = ek.split(rest, 0.1, seed=0)
    known = (train.users.rows(of_items.users.ids) >= 0)[of_items.user_rows()]
    return of_items.select(known & (of_items.matrix.data >= relevant))


def test_the_oracle_is_the_one_list_by_popularity_in_the_test():
    data = ek.synthetic(100, 60, 2500, seed=0)
    things = ek.read_features({"item": list(range(60)), "weight": np.arange(60.0)})
    solver = ek.ALS(rank=3, epochs=1, threads=1)
    result = ek.cold_start(solver, data, item_features=things, k=3, relevant=4.0)
    targets = cold_targets(data, 4.0)
    best = np.argsort(-np.bincount(targets.matrix.indices), kind="stable")[:3]
    hits = np.bincount(targets.user_rows(), np.isin(targets.matrix.indices, best))
    oracle = result["cold items: oracle"]
    assert oracle["recall@3"] == pytest.approx(np.mean(hits / np.diff(targets.matrix.indptr)))
    assert oracle["targets"] == result["cold items"]["targets"] == targets.nnz
    assert oracle["users"] == result["cold items"]["users"]
    assert oracle["recall@3"] > result["cold items: random order"]["recall@3"]


def test_the_same_solver_without_features_stands_beside():
    data, people, things = made()
    result = ek.cold_start(SOLVER, data, user_features=people, item_features=things, compare=True)
    rest, _ = ek.split(data, 0.2, by="item", seed=0)
    train, held = ek.split(ek.split(rest, 0.2, by="user", seed=0)[0], 0.1, seed=0)
    plain = ek.evaluate(SOLVER.fit(train), held, intervals=None)
    assert result["warm: without features"].to_dict() == plain.to_dict()
    assert plain["ndcg@10"] != result["warm"]["ndcg@10"]


def test_items_without_features_compete_too():
    data, _, things = made()
    few = things.take(np.arange(0, len(things), 2))
    result = ek.cold_start(SOLVER, data, item_features=few)
    assert result["cold items"]["unknown_item_entries"] == 0
    assert result["cold items"]["users"] == result["cold items: random order"]["users"]


def test_it_prints_as_a_small_table():
    data, people, things = made()
    lines = repr(ek.cold_start(SOLVER, data, user_features=people, item_features=things)).splitlines()
    assert lines[0].split() == ["ndcg@10", "recall@10", "hit_rate@10", "users", "targets"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "warm", "warm: popularity", "cold items", "cold items: random order", "cold items: oracle", "cold users",
        "cold users: popularity",
    ]  # fmt: skip


@pytest.mark.parametrize(("items", "k"), [(1, 3), (5, 2), (6, 6), (7, 12), (30, 10)])
def test_a_random_order_is_the_mean_of_random_lists(items, k):
    rng = np.random.default_rng(0)
    counts = np.array([1, 2, 5, 19, 30])
    counts = counts[counts <= items]
    draws = 4000
    for n in counts:
        ranked = np.full((draws, k), -1)
        shown = min(k, items)
        ranked[:, :shown] = rng.permuted(np.tile(np.arange(items), (draws, 1)), axis=1)[:, :shown]
        targets = csr_array((np.arange(items) < n)[None, :].repeat(draws, 0).astype(np.float32))
        for name, x in ranking_metrics(ranked, targets).items():
            wanted = random_order(np.array([n]), items, k)[name][0]
            assert abs(x.mean() - wanted) <= 5 * x.std() / draws**0.5 + 1e-5, name


@pytest.mark.parametrize(
    ("solver", "options", "said"),
    [
        (SOLVER, {}, "no features"),
        (ek.SGD(rank=2), {"item_features": made()[2]}, "SGD learns from no features"),
        (SOLVER, {"item_features": made()[2], "share": 1.0}, "share is 1.0"),
        (SOLVER, {"item_features": made()[1]}, "none|not one|no id"),
        (SOLVER, {"item_features": made()[2], "k": 0}, "k is 0"),
    ],
)
def test_a_mistake_is_one_sentence(solver, options, said):
    with pytest.raises(ValueError, match=f"(?i){said}") as error:
        ek.cold_start(solver, made()[0], **options)
    assert "\n" not in str(error.value)
