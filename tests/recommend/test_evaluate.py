"""The evaluation protocol: a deterministic popularity model against the protocol written in plain Python."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

import eckart as ek
from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary
from eckart.recommend import evaluate as module
from eckart.recommend.evaluate import Report, evaluate

COLD = 2.5  # what the popularity model predicts for an unknown item


def interactions(triples, rated=True):
    names_u, names_i, values = zip(*triples, strict=True)
    users, items = Vocabulary.of(list(names_u)), Vocabulary.of(list(names_i))
    return Interactions.of(
        users.rows(list(names_u)), items.rows(list(names_i)), np.array(values), users, items, rated=rated
    )


def triples(data):
    ids = zip(data.users.ids[data.user_rows()].tolist(), data.items.ids[data.matrix.indices], strict=True)
    return [(u, i, float(r)) for (u, i), r in zip(ids, data.matrix.data, strict=True)]


@dataclass(frozen=True)
class Popularity:
    """Recommends what most users have, ties by row; predicts the item's mean + 0.1 x the user's entries."""

    users: Vocabulary
    items: Vocabulary
    seen: csr_array
    holders: np.ndarray
    means: np.ndarray
    predicts_ratings: bool = True

    @classmethod
    def fit(cls, train, predicts_ratings=True):
        holders = np.bincount(train.matrix.indices, minlength=len(train.items))
        means = np.bincount(train.matrix.indices, train.matrix.data, minlength=len(train.items)) / holders
        return cls(train.users, train.items, train.matrix, holders, means, predicts_ratings)

    def predict(self, users, items):
        rows, cols = self.users.rows(users), self.items.rows(items)
        sizes = np.append(np.diff(self.seen.indptr), 0)  # row -1 reads the 0
        return np.where(cols >= 0, self.means[cols], COLD).astype(np.float32) + np.float32(0.1) * sizes[rows]

    def top_k(self, user_rows, k, exclude_seen=True):
        ranked = np.full((len(user_rows), k), -1, dtype=np.int32)
        for q, u in enumerate(user_rows):
            had = set(self.seen.indices[self.seen.indptr[u] : self.seen.indptr[u + 1]]) if u >= 0 else set()
            order = [i for i in np.lexsort((np.arange(len(self.items)), -self.holders)) if i not in had]
            ranked[q, : min(k, len(order))] = order[:k]
        return ranked, np.zeros(ranked.shape, dtype=np.float32)

    def fold_in(self, history):
        return replace(self, users=history.users, seen=history.aligned(history.users, self.items)[0])


class Spy:
    """Passes everything on and remembers what was asked, also of the models folded in from it."""

    def __init__(self, model):
        self.model, self.histories, self.asked, self.predicted = model, [], [], []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def fold_in(self, history):
        self.histories.append(history)
        folded = Spy(self.model.fold_in(history))
        folded.asked, folded.predicted = self.asked, self.predicted
        return folded

    def top_k(self, user_rows, k, exclude_seen=True):
        self.asked.append((user_rows.copy(), exclude_seen))
        return self.model.top_k(user_rows, k, exclude_seen)

    def predict(self, users, items):
        self.predicted += zip(np.asarray(users).tolist(), np.asarray(items).tolist(), strict=True)
        return self.model.predict(users, items)


def protocol(train, test, k, relevant=None, histories=None):
    """The report in plain Python, from triples. `histories` replaces what test users are known by."""
    shown = train if histories is None else histories
    holders = {i: len({u for u, j, _ in train if j == i}) for _, i, _ in train}
    had = {u: {i for v, i, _ in shown if v == u and i in holders} for u, _, _ in shown}
    targets = {}
    for u, i, r in test:
        if relevant is None or r >= relevant:
            targets.setdefault(u, set()).add(i)
    lists = {
        u: [i for i in sorted(holders, key=lambda i: (-holders[i], i)) if i not in had.get(u, ())][:k] for u in targets
    }
    total = dict.fromkeys(["recall", "recall_capped", "precision", "ndcg", "map", "mrr", "hit_rate"], 0.0)
    for u, wanted in targets.items():
        places = [r for r, i in enumerate(lists[u], start=1) if i in wanted]
        best = min(k, len(wanted))
        total["recall"] += len(places) / len(wanted)
        total["recall_capped"] += len(places) / best
        total["precision"] += len(places) / k
        total["ndcg"] += sum(1 / math.log2(r + 1) for r in places) / sum(
            1 / math.log2(r + 1) for r in range(1, best + 1)
        )
        total["map"] += sum((n + 1) / r for n, r in enumerate(places)) / best
        total["mrr"] += 1 / places[0] if places else 0
        total["hit_rate"] += bool(places)
    report = {f"{name}@{k}": x / len(targets) for name, x in total.items()}
    slots = [i for row in lists.values() for i in row]
    if slots:
        n_train = len({u for u, _, _ in train})
        report[f"coverage@{k}"] = len(set(slots)) / len(holders)
        report[f"novelty@{k}"] = sum(-math.log2(holders[i] / n_train) for i in slots) / len(slots)
    errors = []
    for u, i, r in test:
        ratings = [x for _, j, x in train if j == i]
        base = sum(ratings) / len(ratings) if ratings else COLD
        errors.append(base + 0.1 * len(had.get(u, ())) - r)
    report["rmse"] = math.sqrt(sum(e * e for e in errors) / len(errors))
    report["mae"] = sum(map(abs, errors)) / len(errors)
    report["entries"], report["users"] = len(test), len(targets)
    report["targets"] = sum(map(len, targets.values()))
    report["users_without_targets"] = len({u for u, _, _ in test}) - len(targets)
    report["unknown_users"] = len({u for u, _, _ in test} - set(had))
    report["unknown_item_entries"] = sum(i not in holders for _, i, _ in test)
    report["seen_entries"] = sum(i in had.get(u, ()) for u, i, _ in test)
    return report


@st.composite
def train_and_test(draw):
    """Triples of both; some users and items occur on one side only."""
    cells = draw(
        st.dictionaries(
            st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("ABCDEFGHIJ")),
            st.tuples(st.integers(0, 5), st.booleans()),
            min_size=2,
            max_size=50,
        )
    )
    sides = [[], []]
    for (u, i), (r, held) in cells.items():
        sides[held].append((u, i, float(r)))
    assume(all(sides))
    return sides


@settings(deadline=None)
@given(train_and_test(), st.integers(1, 12), st.sampled_from([None, 3.0]))
def test_report_is_the_protocol(sides, k, relevant):
    train, test = sides
    assume(relevant is None or any(r >= relevant for *_, r in test))
    report = evaluate(Popularity.fit(interactions(train)), interactions(test), k, relevant=relevant, intervals=None)
    assert dict(report) == pytest.approx(protocol(train, test, k, relevant), abs=1e-6)


@settings(deadline=None, max_examples=20)  # each bootstraps four times
@given(train_and_test(), st.permutations("abcdefgh"))
def test_renaming_users_changes_nothing(sides, order):
    name = dict(zip("abcdefgh", order, strict=True))
    reports = [
        evaluate(Popularity.fit(interactions(train)), interactions(test), 3)
        for train, test in (sides, [[(name[u], i, r) for u, i, r in side] for side in sides])
    ]
    assert dict(reports[0]) == pytest.approx(dict(reports[1]), abs=1e-9)
    assert reports[0].intervals.keys() == reports[1].intervals.keys()
    for metric, ends in reports[0].intervals.items():
        assert ends == pytest.approx(reports[1].intervals[metric], abs=1e-6), metric


@settings(deadline=None, max_examples=20)  # each bootstraps four times
@given(train_and_test())
def test_ids_without_entries_are_no_test_users(sides):
    model, test = Popularity.fit(interactions(sides[0])), interactions(sides[1])
    users, items = Vocabulary(list("abcdefghz")), Vocabulary(list("ABCDEFGHIJZ"))
    wider = Interactions(test.aligned(users, items)[0], users, items)
    assert evaluate(model, wider, 3).to_dict() == evaluate(model, test, 3).to_dict()


def world(users=60, items=25, seed=0):
    rng = np.random.default_rng(seed)
    cells = np.argwhere(rng.random((users, items)) < 0.4 * np.linspace(1, 0.1, items))
    rows = [(f"u{u:02}", f"i{i:02}", float(rng.integers(1, 6))) for u, i in cells]
    held = rng.random(len(rows)) < 0.3
    return (
        [t for t, h in zip(rows, held, strict=True) if not h],
        [t for t, h in zip(rows, held, strict=True) if h],
    )


def test_chunks_change_nothing(monkeypatch):
    train, test = world()
    model = Popularity.fit(interactions(train))
    whole = evaluate(model, interactions(test))
    monkeypatch.setattr(module, "_USERS", 7)
    monkeypatch.setattr(module, "_ENTRIES", 11)
    assert evaluate(model, interactions(test)).to_dict() == whole.to_dict()


def test_known_answer():
    # Holders: A 3, B 2, C 1. x has A, so is served B, C; y is new, so is served A, B; Z is new, so never hit.
    train = [("x", "A", 4), ("p", "A", 4), ("q", "A", 4), ("p", "B", 2), ("q", "B", 2), ("q", "C", 5)]
    test = [("x", "C", 5), ("y", "A", 3), ("y", "Z", 4)]
    report = evaluate(Popularity.fit(interactions(train)), interactions(test), k=2)
    assert report["recall@2"] == (1 + 1 / 2) / 2
    assert report["mrr@2"] == (1 / 2 + 1) / 2
    assert report["precision@2"] == 1 / 2
    assert report["hit_rate@2"] == 1
    assert report["coverage@2"] == 1
    assert report["novelty@2"] == pytest.approx((2 * math.log2(3 / 2) + math.log2(3) + 0) / 4)
    assert report["mae"] == pytest.approx((0.1 + 1 + 1.5) / 3)
    counts = ["users", "targets", "entries", "unknown_users", "unknown_item_entries", "seen_entries"]
    assert [report[name] for name in counts] == [2, 3, 3, 1, 1, 0]


def test_only_training_entries_are_excluded():
    train, test = world()
    spy = Spy(Popularity.fit(interactions(train)))
    held = interactions(test)
    evaluate(spy, held)
    rows, exclude = spy.asked[0]
    assert exclude
    assert [spy.users.ids[u] for u in rows] == held.users.ids.tolist()
    # A list as long as the catalogue holds every target the user does not have yet: all of them.
    assert evaluate(spy.model, held, k=25)["recall@25"] == 1


def test_evaluating_on_training_entries_is_visible():
    train, _ = world()
    report = evaluate(Popularity.fit(interactions(train)), interactions(train))
    assert report["seen_entries"] == report["entries"] == len(train)
    assert report["recall@10"] == 0


def test_seen_rating_of_zero_is_seen():
    train = [("a", "A", 0.0), ("b", "B", 1.0)]
    assert evaluate(Popularity.fit(interactions(train)), interactions(train[:1]))["seen_entries"] == 1


def test_item_ids_of_another_type_are_an_error_not_a_silent_zero():
    train, _ = world()
    with pytest.raises(ValueError, match="item ids are text in the model and integers in the test"):
        evaluate(Popularity.fit(interactions(train)), interactions([(7, 8, 3.0), (7, 9, 1.0)]))


@pytest.mark.parametrize("implicit, rated", [(True, True), (False, False), (True, False)])
def test_rating_errors_only_between_ratings(implicit, rated):
    train, test = world()
    model = Popularity.fit(interactions(train), predicts_ratings=not implicit)
    report = evaluate(model, interactions(test, rated=rated))
    assert not {"rmse", "mae"} & {*report, *report.intervals}
    assert "ndcg@10" in report


def test_leave_one_out_hit_rate_is_recall():
    train, test = world()
    one = list({u: (u, i, r) for u, i, r in test}.values())
    report = evaluate(Popularity.fit(interactions(train)), interactions(one))
    assert 0 < report["hit_rate@10"] < 1
    assert report["hit_rate@10"] == report["recall@10"] == report["recall_capped@10"]


# Strong generalisation


def strong():
    """Triples of 20 training users and of new users with at least two entries."""
    train, test = world(users=40, seed=1)
    sizes = Counter(u for u, *_ in train + test)
    new = [t for t in train + test if t[0] >= "u20" and sizes[t[0]] > 1]
    return [t for t in train + test if t[0] < "u20"], new


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_fold_in_uses_every_entry_once_and_is_the_protocol(share):
    train, test = strong()
    spy = Spy(Popularity.fit(interactions(train)))
    report = evaluate(spy, interactions(test), fold_in=share, intervals=None)
    histories = triples(spy.histories[0])
    given = {(u, i) for u, i, _ in histories}
    found = set(spy.predicted)
    assert len(given) + len(found) == report["folded_entries"] + report["entries"] == len(test)
    assert given | found == {(u, i) for u, i, _ in test}
    assert not given & found
    for user in {u for u, *_ in test}:
        n, n_given = (sum(u == user for u, *_ in rows) for rows in (test, histories))
        assert n_given == min(max(math.ceil(round(share * n, 9)), 1), n - 1)
    rest = [t for t in test if t[:2] in found]
    want = protocol(train, rest, 10, histories=histories)
    want |= {"folded_entries": len(histories), "too_short_users": 0}
    assert dict(report) == pytest.approx(want, abs=1e-6)
    assert report["seen_entries"] == report["unknown_users"] == 0


def test_fold_in_holds_out_as_many_as_mult_vae():
    # floor(0.2 n) of n for n >= 5; 0.55 * 100 = 55.00000000000001 must not be rounded up for its last bit.
    for share, n, want in [(0.8, 5, 4), (0.8, 9, 8), (0.8, 10, 8), (0.55, 100, 55), (0.9, 2, 1)]:
        spy = Spy(Popularity.fit(interactions([("t", "A", 1.0)])))
        evaluate(spy, interactions([("v", f"i{i}", 1.0) for i in range(n)]), fold_in=share, intervals=None)
        assert spy.histories[0].nnz == want


def test_fold_in_depends_on_the_seed_but_not_on_file_order():
    train, test = strong()
    model = Popularity.fit(interactions(train))
    once = evaluate(model, interactions(test), fold_in=0.5, seed=1)
    assert evaluate(model, interactions(test[::-1]), fold_in=0.5, seed=1).to_dict() == once.to_dict()
    assert evaluate(model, interactions(test), fold_in=0.5, seed=2)["ndcg@10"] != once["ndcg@10"]


def test_fold_in_draws_at_random():
    # Over 200 seeds each of a user's 4 entries is given half the time.
    model = Popularity.fit(interactions([("t", "A", 1.0)]))
    test = interactions([("v", i, 1.0) for i in "ABCD"])
    times = dict.fromkeys("ABCD", 0)
    for seed in range(200):
        spy = Spy(model)
        evaluate(spy, test, fold_in=0.5, seed=seed, intervals=None)
        for _, i, _ in triples(spy.histories[0]):
            times[i] += 1
    assert sum(times.values()) == 400
    assert all(75 < n < 125 for n in times.values())


def test_fold_in_leaves_out_users_with_one_entry():
    model = Popularity.fit(interactions([("t", "A", 1.0)]))
    report = evaluate(model, interactions([("v", "A", 1.0), ("v", "B", 1.0), ("w", "A", 1.0)]), fold_in=0.9)
    counts = ["users", "entries", "folded_entries", "too_short_users"]
    assert [report[name] for name in counts] == [1, 1, 1, 1]


def test_fold_in_refuses_users_the_model_was_trained_on():
    train, test = strong()
    with pytest.raises(ValueError, match=r"1 of \d+ test users were in training \(first: 'u03'\)"):
        evaluate(Popularity.fit(interactions(train)), interactions([*test, ("u03", "i99", 1.0)]), fold_in=0.8)


# Intervals and the report


def test_intervals_hold_the_numbers_and_are_deterministic():
    train, test = world()
    model = Popularity.fit(interactions(train))
    report = evaluate(model, interactions(test), seed=5)
    assert set(report.intervals) == {name for name in report if name == "rmse" or name == "mae" or "@" in name} - {
        "coverage@10",
        "novelty@10",
    }
    for name, (low, high) in report.intervals.items():
        assert low < report[name] < high, name
    again = evaluate(model, interactions(test), seed=5)
    assert again.intervals == report.intervals
    other = evaluate(model, interactions(test), seed=6)
    assert all(other.intervals[name] != report.intervals[name] for name in ("rmse", "ndcg@10"))
    narrow = evaluate(model, interactions(test), seed=5, intervals=0.5)
    for name, (low, high) in report.intervals.items():
        assert low < narrow.intervals[name][0] < narrow.intervals[name][1] < high, name
    assert evaluate(model, interactions(test), intervals=None).intervals == {}


def test_report_is_an_immutable_mapping_that_prints_and_exports():
    train, test = world()
    report = evaluate(Popularity.fit(interactions(train)), interactions(test), k=5)
    with pytest.raises(AttributeError):
        report.level = 0.5
    with pytest.raises(TypeError):
        report["rmse"] = 0.0
    with pytest.raises(KeyError):
        report["recall@10"]
    back = json.loads(json.dumps(report.to_dict()))
    assert back["rmse"] == report["rmse"]
    assert back["intervals"]["recall@5"] == list(report.intervals["recall@5"])
    assert back["users"] == report["users"]
    lines = repr(report).splitlines()
    assert len(lines) == len(report) + 1
    assert "95 % interval" in lines[0]
    ends = {line.index(line.split()[1]) + len(line.split()[1]) for line in lines[1:]}
    assert len(ends) == 1  # values are right-aligned
    assert "interval" not in repr(evaluate(Popularity.fit(interactions(train)), interactions(test), intervals=None))
    assert repr(Report({}, {})).split() == ["value"]


def test_nothing_recommended_has_no_coverage_or_novelty():
    train = [("a", "A", 1.0), ("b", "A", 2.0)]
    report = evaluate(Popularity.fit(interactions(train)), interactions([("a", "Z", 1.0)]))
    assert report["recall@10"] == 0
    assert not {"coverage@10", "novelty@10"} & set(report)


class Broken(Popularity):
    def predict(self, users, items):
        return np.where(np.arange(len(users)) == 0, np.nan, 1.0).astype(np.float32)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"k": 0}, "k is 0: choose 1 to 10,000"),
        ({"fold_in": 1.0}, "fold_in is 1.0: choose a number between 0 and 1"),
        ({"fold_in": 0.5}, "every test user has a single entry"),
        ({"intervals": 95}, "intervals is 95: choose a number between 0 and 1"),
        ({"relevant": 6.0}, "no test rating reaches relevant = 6.0: the highest is 3.0"),
        ({"test": interactions([("v", "A", 1.0)], rated=False), "relevant": 4.0}, "test is positive-only"),
        ({"test": interactions([("v", "A", 1.0)]).select(np.zeros(1, bool))}, "test has no entries"),
        ({"model": Broken.fit(interactions([("t", "A", 1.0)]))}, "1 of 1 predictions are not finite"),
    ],
)
def test_mistakes_get_one_sentence(arguments, says):
    usual = {
        "model": Popularity.fit(interactions([("t", "A", 1.0)])),
        "test": interactions([("v", "A", 3.0)]),
    }
    with pytest.raises(ValueError, match=says) as error:
        evaluate(**(usual | arguments))
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=20)
@given(train_and_test(), st.integers(1, 5), st.integers(1, 6))
def test_recall_by_popularity_adds_up_to_that_of_all_targets(sides, k, strata):
    model, test = Popularity.fit(interactions(sides[0])), interactions(sides[1])
    spy = Spy(model)
    report = evaluate(spy, test, k, strata=strata, intervals=None)
    whole = evaluate(model, test, k, strata=1, intervals=None)[f"recall@{k} 1/1"]
    ranked, _ = model.top_k(model.users.rows(test.users.ids), k)
    lists = {u: {model.items.ids[i] for i in row if i >= 0} for u, row in zip(test.users.ids, ranked, strict=True)}
    found = Counter(i for u, i, _ in triples(test) if i in lists[u])
    assert whole == pytest.approx(sum(found.values()) / test.nnz)
    # Written out: the targets of each popularity stand in the group where the middle one of them falls.
    holders = Counter(i for _, i, _ in triples(Interactions(model.seen, model.users, model.items)))
    before, groups = 0, {}
    for level in sorted({holders[i] for i in test.items.ids}):
        its = [i for _, i, _ in triples(test) if holders[i] == level]
        groups.setdefault(min(int((before + len(its) / 2) / test.nnz * strata), strata - 1), []).extend(its)
        before += len(its)
    told = {name: x for name, x in report.items() if "/" in name}
    assert set(told) == {f"recall@{k} {g + 1}/{strata}" for g in groups}
    for g, its in groups.items():
        hits = sum(found[i] for i in set(its))
        assert told[f"recall@{k} {g + 1}/{strata}"] == pytest.approx(hits / len(its))


def planted():
    """A catalogue of 12 items, 4 of which are cold: known by their features alone."""
    data = ek.synthetic(40, 12, 240, seed=0)
    old, new = ek.split(data, test=1 / 3, by="item", seed=0)
    kinds = ek.read_features({"item": list(range(12)), "kind": ["a", "b", "c"] * 4})
    return ek.ALS(rank=2, epochs=3).fit(old, item_features=kinds).add_items(kinds), old, new


def test_only_the_given_items_compete_and_are_targets():
    model, _, new = planted()
    everything = ek.synthetic(40, 12, 240, seed=0)
    ids = new.items.ids
    report = evaluate(model, everything, 2, items=ids, intervals=None)
    on_them = everything.select(np.isin(everything.items.ids, ids)[everything.matrix.indices])
    assert report["entries"] == report["targets"] == on_them.nnz
    users = on_them.users.ids
    lists = model.recommend(users, 2, items=ids).to_pylist()
    assert {row["item"] for row in lists} <= set(ids.tolist())
    hits = {(u, i) for u, i, _ in triples(on_them)} & {(row["user"], row["item"]) for row in lists}
    assert report["precision@2"] == pytest.approx(len(hits) / (2 * len(users)))
    assert report["coverage@2"] == len({row["item"] for row in lists}) / len(ids)
    # Every one of them fits into the lists: all is found. Without `items` the others compete, too.
    assert evaluate(model, new, len(ids), items=ids)["recall@4"] == 1
    assert evaluate(model, new, len(ids))["recall@4"] < 1


def test_cold_items_are_the_least_popular():
    model, _, new = planted()
    old_test = interactions([(u, i, 3.0) for u in (900, 901) for i in model.items.ids if i not in new.items])
    both = interactions([*triples(new)[:16], *triples(old_test)])
    report = evaluate(model, both, 4, strata=2, intervals=None)
    alone = evaluate(model, interactions(triples(new)[:16]), 4, strata=1, intervals=None)
    assert report["recall@4 1/2"] == alone["recall@4 1/1"]


def test_what_cannot_compete_is_said():
    model, _, new = planted()
    for bad, said in [(["x"], "none of the 1 items"), ([999], "none of the 1 items is in the model")]:
        with pytest.raises(ValueError, match=said):
            evaluate(model, new, items=bad)
    with pytest.raises(ValueError, match="is in the test"):
        evaluate(model, new, items=[i for i in model.items.ids.tolist() if i not in new.items])
    with pytest.raises(ValueError, match="strata is 0"):
        evaluate(model, new, strata=0)
