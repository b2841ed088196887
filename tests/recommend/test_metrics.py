"""Every metric against its definition, written once more in plain Python from the formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from eckart.recommend.metrics import (
    bootstrap_intervals,
    coverage,
    find_hits,
    mae,
    novelty,
    ranking_metrics,
    rmse,
    strata_recall,
)

finite = st.floats(-100, 100, width=32)


@st.composite
def lists_and_targets(draw):
    """A list per user (distinct items, -1 at the end), the targets as sets, and the number of items."""
    items = draw(st.integers(1, 12))
    k = draw(st.integers(1, 15))  # also more than the catalogue has
    users = draw(st.integers(1, 6))
    lists, sets = [], []
    for _ in range(users):
        length = draw(st.integers(0, min(k, items)))
        lists.append(draw(st.permutations(range(items)))[:length])
        sets.append(draw(st.sets(st.integers(0, items - 1))))  # empty ones too
    return lists, sets, k, items


def padded(lists, k):
    return np.array([[*row, *[-1] * (k - len(row))] for row in lists], dtype=np.int32)


def stored(sets, items, value=1.0):
    pairs = [(u, i) for u, s in enumerate(sets) for i in s]
    rows, cols = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return csr_array((np.full(len(pairs), value), (rows, cols)), shape=(len(sets), items))


def by_definition(items, targets, k):
    """The seven metrics of one user with at least one target."""
    best = min(k, len(targets))
    places = [r for r, i in enumerate(items, start=1) if i in targets]
    return {
        "recall": len(places) / len(targets),
        "recall_capped": len(places) / best,
        "precision": len(places) / k,
        "ndcg": sum(1 / math.log2(r + 1) for r in places) / sum(1 / math.log2(r + 1) for r in range(1, best + 1)),
        "map": sum(sum(p <= r for p in places) / r for r in places) / best,
        "mrr": 1 / places[0] if places else 0.0,
        "hit_rate": float(bool(places)),
    }


@settings(deadline=None)
@given(lists_and_targets())
def test_ranking_metrics_are_their_definitions(case):
    lists, sets, k, items = case
    got = ranking_metrics(padded(lists, k), stored(sets, items))
    for u, (row, targets) in enumerate(zip(lists, sets, strict=True)):
        if not targets:
            assert all(math.isnan(x[u]) for x in got.values())
            continue
        for name, want in by_definition(row, targets, k).items():
            assert got[name][u] == pytest.approx(want, abs=1e-12), name


@settings(deadline=None)
@given(lists_and_targets())
def test_ranking_metrics_lie_between_0_and_1(case):
    lists, sets, k, items = case
    for x in ranking_metrics(padded(lists, k), stored(sets, items)).values():
        x = x[~np.isnan(x)]
        assert np.all((x >= 0) & (x <= 1 + 1e-12))


@settings(deadline=None)
@given(lists_and_targets())
def test_coverage_and_novelty_are_their_definitions(case):
    lists, sets, k, items = case
    ranked = padded(lists, k)
    shown = [i for row in lists for i in row]
    assert coverage(ranked, items) == len(set(shown)) / items
    holders = [sum(i in s for s in sets) for i in range(items)]
    got = novelty(ranked, np.array(holders), len(sets))
    if not shown:
        assert math.isnan(got)
        return
    bits = [-math.log2(max(holders[i], 1) / len(sets)) for i in shown]
    assert got == pytest.approx(sum(bits) / len(bits), abs=1e-12)


@settings(deadline=None)
@given(lists_and_targets(), st.randoms(use_true_random=False))
def test_reordering_users_reorders_their_metrics(case, random):
    lists, sets, k, items = case
    order = list(range(len(lists)))
    random.shuffle(order)
    ranked, targets = padded(lists, k), stored(sets, items)
    was = ranking_metrics(ranked, targets)
    now = ranking_metrics(ranked[order], targets[order])
    for name in was:
        np.testing.assert_array_equal(now[name], was[name][order])


def test_perfect_list_known_by_hand():
    # Three targets, all of them first, k = 5.
    got = ranking_metrics(np.array([[4, 0, 2, 1, 3]]), stored([{0, 2, 4}], 6))
    assert {name: float(x[0]) for name, x in got.items()} == pytest.approx(
        {
            "recall": 1,
            "recall_capped": 1,
            "precision": 0.6,
            "ndcg": 1,
            "map": 1,
            "mrr": 1,
            "hit_rate": 1,
        }
    )


def test_mixed_list_known_by_hand():
    # Targets 0..3, k = 3, hits at places 2 and 3: the two recalls differ (2/4 and 2/3).
    got = ranking_metrics(np.array([[9, 1, 3]]), stored([{0, 1, 2, 3}], 10))
    dcg = 1 / math.log2(3) + 1 / 2
    assert {name: float(x[0]) for name, x in got.items()} == pytest.approx(
        {
            "recall": 1 / 2,
            "recall_capped": 2 / 3,
            "precision": 2 / 3,
            "ndcg": dcg / (1 + dcg),
            "map": (1 / 2 + 2 / 3) / 3,
            "mrr": 1 / 2,
            "hit_rate": 1,
        }
    )


def test_padding_is_no_hit_on_the_previous_users_last_item():
    # Key of (user 1, -1) is that of (user 0, last item): the padding must be looked at, not only the key.
    hit, _ = find_hits(np.array([[0], [-1]]), stored([{2}, {0}], 3))
    assert not hit.any()


def test_target_of_value_zero_counts():
    hit, n = find_hits(np.array([[1, 0]]), stored([{0}], 2, value=0.0))
    assert hit.tolist() == [[False, True]]
    assert n.tolist() == [1]


def test_target_stored_twice_or_out_of_order_counts_once():
    twice = csr_array((np.ones(3), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    hit, n = find_hits(np.array([[0, 2, 1]]), twice)
    assert hit.tolist() == [[True, True, False]]
    assert n.tolist() == [2]
    assert twice.nnz == 3  # the caller's array is left alone


@pytest.mark.parametrize(
    "ranked, says",
    [
        (np.zeros((2, 3), int), "expected one row for each of 1 users"),
        (np.zeros((1, 0), int), "k >= 1"),
        (np.array([[3]]), "expected item columns 0..2 or -1"),
        (np.array([[-2]]), "expected item columns 0..2 or -1"),
    ],
)
def test_lists_that_do_not_fit_are_refused(ranked, says):
    with pytest.raises(ValueError, match=says):
        find_hits(ranked, stored([{0}], 3))


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=50))
def test_rating_errors_are_their_definitions(pairs):
    p, r = np.array(pairs, dtype=np.float32).T
    errors = [float(x) - float(y) for x, y in pairs]
    assert rmse(p, r) == pytest.approx(math.sqrt(math.fsum(e * e for e in errors) / len(errors)), abs=1e-12)
    assert mae(p, r) == pytest.approx(math.fsum(map(abs, errors)) / len(errors), abs=1e-12)


def test_rating_errors_accumulate_in_float64():
    # 300,000 squares of 0.1: a float32 sum is off in the seventh digit.
    p, r = np.full(300_000, 0.1, dtype=np.float32), np.zeros(300_000, dtype=np.float32)
    assert rmse(p, r) == pytest.approx(float(np.float32(0.1)), rel=1e-13)
    assert mae(p, r) == pytest.approx(float(np.float32(0.1)), rel=1e-13)


def test_rating_errors_refuse_what_cannot_be_averaged():
    with pytest.raises(ValueError, match="one value per entry"):
        rmse(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="no entries"):
        mae(np.zeros(0), np.zeros(0))


def test_interval_holds_the_mean_and_shrinks_as_one_over_root_n():
    rng = np.random.default_rng(3)
    widths = []
    for users in (100, 10_000):
        x = rng.exponential(size=(users, 2))
        ends = bootstrap_intervals(x, np.ones(users))
        assert np.all(ends[:, 0] < x.mean(axis=0))
        assert np.all(ends[:, 1] > x.mean(axis=0))
        widths.append(ends[:, 1] - ends[:, 0])
    assert np.all(abs(widths[0] / widths[1] / 10 - 1) < 0.4)


def test_interval_is_that_of_the_readable_twin():
    # The same draws, one user at a time.
    rng = np.random.default_rng(5)
    x, counts = rng.normal(size=30), rng.integers(1, 9, size=30)
    order = sorted(range(30), key=lambda u: (x[u], counts[u]))
    draws = np.random.default_rng(7)
    ratios = []
    for _ in range(200):
        drawn = [order[j] for j in draws.integers(30, size=30)]
        ratios.append(sum(x[u] for u in drawn) / sum(counts[u] for u in drawn))
    want = np.quantile(ratios, [0.05, 0.95])
    got = bootstrap_intervals(x[:, None], counts, level=0.9, resamples=200, seed=7)
    np.testing.assert_allclose(got[0], want, rtol=1e-12)


def test_interval_depends_on_seed_and_users_but_not_on_their_order():
    rng = np.random.default_rng(0)
    x, counts = rng.normal(size=(200, 3)), rng.integers(1, 9, size=200)
    once = bootstrap_intervals(x, counts, seed=1)
    order = rng.permutation(200)
    np.testing.assert_array_equal(bootstrap_intervals(x, counts, seed=1), once)
    np.testing.assert_array_equal(bootstrap_intervals(x[order], counts[order], seed=1), once)
    assert np.all(bootstrap_intervals(x, counts, seed=2) != once)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 300 worlds of 80 users with 1..20 entries each; all entries of a user share one error. Intervals that
    # draw entries instead of users are fooled by that, so they must fail here.
    rng = np.random.default_rng(11)
    by_user, by_entry = 0, 0
    for world in range(300):
        counts = rng.integers(1, 21, size=80)
        error = rng.normal(2.0, 1.0, size=80)
        low, high = bootstrap_intervals((counts * error)[:, None], counts, 0.9, resamples=200, seed=world)[0]
        by_user += low <= 2.0 <= high
        entries = np.repeat(error, counts)[:, None]
        low, high = bootstrap_intervals(entries, np.ones(len(entries)), 0.9, resamples=200, seed=world)[0]
        by_entry += low <= 2.0 <= high
    assert 0.85 <= by_user / 300 <= 0.94
    assert by_entry / 300 < 0.6


def test_intervals_refuse_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="users >= 1"):
        bootstrap_intervals(np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(ValueError, match="not positive"):
        bootstrap_intervals(np.zeros((2, 2)), np.array([1, 0]))


@settings(deadline=None)
@given(lists_and_targets(), st.integers(1, 6), st.data())
def test_strata_add_up_to_the_recall_of_all_targets(case, strata, data):
    lists, sets, k, items = case
    holders = np.array(data.draw(st.lists(st.integers(0, 5), min_size=items, max_size=items)))
    ranked, targets = padded(lists, k), stored(sets, items)
    shares = strata_recall(ranked, targets, holders, strata)
    assert shares.shape == (strata,)
    # By definition: targets of one popularity stand together, where the middle one of them is counted off.
    wanted = sorted(holders[i] for s in sets for i in s)
    found = [holders[i] for row, s in zip(lists, sets, strict=True) for i in row if i in s]

    def group(level):
        before, count = sum(h < level for h in wanted), wanted.count(level)
        return min((2 * before + count) * strata // (2 * len(wanted)), strata - 1)

    sizes = np.bincount([group(h) for h in wanted], minlength=strata) if wanted else np.zeros(strata, int)
    hits = np.bincount([group(h) for h in found], minlength=strata) if found else np.zeros(strata, int)
    assert np.array_equal(np.isnan(shares), sizes == 0)
    np.testing.assert_allclose(np.where(sizes > 0, shares, 0) * sizes, hits, atol=1e-12)
    assert sizes @ np.where(sizes > 0, shares, 0) == pytest.approx(len(found))
    if wanted:
        assert strata_recall(ranked, targets, holders, 1).tolist() == pytest.approx([len(found) / len(wanted)])
        assert strata_recall(ranked, targets, np.zeros(items, int), 1).tolist() == pytest.approx(
            [len(found) / len(wanted)]
        )


def test_strata_are_ordered_from_the_least_popular():
    # Four targets, popular ones found: the rare half has none of its own, the popular half all.
    targets = stored([{0, 3}, {1, 2}], 4)
    ranked = np.array([[3], [2]], dtype=np.int32)
    assert strata_recall(ranked, targets, np.array([1, 2, 30, 40]), 2).tolist() == [0, 1]
    assert strata_recall(ranked, targets, np.array([40, 30, 2, 1]), 2).tolist() == [1, 0]
    assert strata_recall(ranked, targets, np.array([1, 2, 30, 40]), 4).tolist() == [0, 0, 1, 1]
    # All equally popular: one group has everything, the others are no share.
    shares = strata_recall(ranked, targets, np.ones(4, int), 3)
    assert shares[1] == 0.5
    assert np.isnan(shares[[0, 2]]).all()
