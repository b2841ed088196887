"""Items nobody has rated, recommended by what is known of them: closed form, tower, and what they have to beat.

    python benchmarks/cold.py DATA citeulike-a|citeulike-t|ml-1m [--tower] [--tune | --ablate] [--sentences DIR]

- citeulike-a: articles by their tags and citation links, DropoutNet's cold split: 3,396 articles are in no training
  pair, only they compete, recall@100 is by all of a user's articles among them (Volkovs, Yu, Poutanen 2017).
- citeulike-t: articles by the words of title and abstract; a fifth of the articles (seed 0) is held out.
- ml-1m: films by title year, genres and abstract; a fifth of the films (seed 0) is held out, every rating counts as
  positive; NDCG@10 among them, and of a tenth of the other ratings among the other films, beside plain ImplicitALS.

Baselines: `profile` is the cosine between the sum of the features of a user's articles and those of an article, TF-IDF
as the model has it. Of cold films no popularity is known: `random` is the expectation of any order; `guessed` a ridge
regression of the training films' popularity on the same features, the same list for everyone; `oracle` the popularity
in the test itself, which nobody has.

With --ablate, CHOSEN is validated with some columns only; with --sentences, a directory with a sentence encoder, also
with abstracts as vectors.

Settings are chosen on a fifth of the training items, held out the same way (seed 1); the test is read once with
CHOSEN. The test of ml-1m had been read for another setting before (reg 0.003, feature_reg 1: cold 0.3869; warm 0.2593,
plain 0.2610): CHOSEN gives up some of the cold films so that warm ones lose nothing, see docs/cold-start.md. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, diags_array, eye_array

import eckart as ek
from eckart.data.feature_map import FeatureMap
from eckart.recommend.metrics import find_hits, ndcg, recall

_ARTICLES = ek.ImplicitALS(rank=256, reg=0.1, unobserved_weight=0.03, exponent=0.5, epochs=16)
CHOSEN = {
    "citeulike-a": _ARTICLES,
    "citeulike-t": dataclasses.replace(_ARTICLES, feature_reg=3.0),
    "ml-1m": ek.ImplicitALS(rank=64, reg=0.015, unobserved_weight=0.1, epochs=16, feature_reg=20.0),
}
_CHANGES: list[dict[str, Any]] = [{"feature_reg": 1.0}, {"reg": 0.03}, {"feature_reg": 3.0}, {"rank": 128}]
_TOWER = ek.TwoTower(
    item=ek.MLP(hidden=()), rank=128, epochs=15, temperature=0.25, reg=3.0, draws=2000, batch=512, threads=1
)
TOWERS = {"citeulike-a": _TOWER, "citeulike-t": _TOWER, "ml-1m": dataclasses.replace(_TOWER, rank=64)}
TRIED_TOWERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"reg": 1.0},
    {"reg": 10.0},
    {"rank": 256},
    {"item": (ek.Ids(dropout=0.5), ek.MLP(hidden=()))},
    {"item": ek.MLP(hidden=(256,), dropout=0.5)},
]
TRIED: dict[str, list[dict[str, Any]]] = {
    "citeulike-a": _CHANGES,
    "citeulike-t": _CHANGES,
    "ml-1m": [{}, {"feature_reg": 5.0}, {"feature_reg": 1.0}, {"reg": 0.003, "feature_reg": 1.0}],
}


ABLATED = {
    "citeulike-a": [["tags"], ["links"], ["tags", "links"]],
    "citeulike-t": [["words"]],
    "ml-1m": [
        ["genres"],
        ["genres", "year"],
        ["abstract"],
        ["genres", "year", "abstract"],
        ["genres", "year", "title", "abstract"],
    ],
}


class Cold(NamedTuple):
    """Interactions apart by item."""

    train: ek.Interactions
    test: ek.Interactions
    features: ek.Features


def pairs(users: np.ndarray, items: np.ndarray) -> ek.Interactions:
    return ek.read({"user": users, "item": items})


def citeulike_a(folder: Path) -> Cold:
    z, content = (np.load(folder / "citeulike-a" / name) for name in ("interactions.npz", "item_content.npz"))
    m, cold = 16980, z["dropoutnet_cold_test"]

    def matrix(name: str, columns: int) -> csr_array:
        indices, indptr = content[f"{name}_indices"].astype(np.int32), content[f"{name}_indptr"]
        return csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(m, columns))

    tags, links = matrix("tag", 46391), matrix("citation", m)
    # An article shares the feature "linked to j" with j itself.
    links = ((links + links.T + eye_array(m)) > 0).astype(np.float32)
    features = ek.read_features({"item": np.arange(m), "tags": tags, "links": csr_array(links)})
    users, items = z["user"].astype(np.int64), z["item"].astype(np.int64)
    return Cold(pairs(users[~cold], items[~cold]), pairs(users[cold], items[cold]), features)


def citeulike_t(folder: Path) -> Cold:
    z, content = (np.load(folder / "citeulike-t" / name) for name in ("interactions.npz", "item_content.npz"))
    words = csr_array(
        (content["word_counts"].astype(np.float32), content["word_indices"].astype(np.int32), content["word_indptr"]),
        shape=(25975, 20000),
    )
    features = ek.read_features({"item": np.arange(25975), "words": words})
    return apart(pairs(z["user"].astype(np.int64), z["item"].astype(np.int64)), features, seed=0)


def movielens(folder: Path) -> Cold:
    ratings, films = (pd.read_parquet(folder / "ml-1m" / f"{name}.parquet") for name in ("ratings", "movies"))
    year = films.title.str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    columns = {"item": films.item, "genres": films.genres, "year": year, "title": films.title}
    features = ek.read_features(
        pd.DataFrame(columns | {"abstract": films.dbpedia_abstract}),
        kinds={"genres": "categories", "title": "text", "abstract": "text"},
    )
    return apart(pairs(ratings.user.to_numpy(), ratings.item.to_numpy()), features, seed=0)


def apart(data: ek.Interactions, features: ek.Features, seed: int) -> Cold:
    """A fifth of the items apart from the others."""
    train, test = ek.split(data, test=0.2, by="item", seed=seed)
    return Cold(train, test, features)


def of_cold(model: ek.Recommender, cold: Cold, k: int, metric: Any) -> float:
    """Mean metric of the users of the training who have cold items, among which alone they choose."""
    model = model.add_items(cold.features.take(cold.features.ids.rows(cold.test.items.ids)))
    return of_lists(lambda users, allow: model.top_k(users, k, allow=allow)[0], model, cold.test, metric)


def of_lists(lists: Any, model: Any, test: ek.Interactions, metric: Any) -> float:
    users, allow = model.users.rows(test.users.ids), model.items.rows(test.items.ids)
    known = users >= 0
    targets, _ = test.aligned(test.users, model.items)
    return round(float(np.mean(metric(*find_hits(lists(users[known], allow), csr_array(targets[known]))))), 4)


class Scored(NamedTuple):
    """Scores of users for cold items, made in any way."""

    users: ek.Vocabulary
    items: ek.Vocabulary
    scores: Any  # of rows of users: (q, cold items)

    def best(self, k: int, metric: Any, test: ek.Interactions) -> float:
        """Mean metric of lists of the best `k`."""

        def lists(users: np.ndarray, allow: np.ndarray) -> np.ndarray:
            S = self.scores(users)
            rough = np.argpartition(-S, min(k, S.shape[1] - 1), axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(S, rough, 1), axis=1, kind="stable")
            return np.take_along_axis(rough, order, 1)

        return of_lists(lists, self, test, metric)


def profile(cold: Cold, k: int) -> float:
    """Cosine of the sum of a user's articles with each cold one."""
    there = cold.features.aligned(cold.train.items)
    to_matrix = FeatureMap.fit(there)
    X = to_matrix.matrix(there)[:, :-1]
    C = to_matrix.matrix(cold.features.aligned(cold.test.items))[:, :-1]

    def scores(users: np.ndarray) -> np.ndarray:
        P = csr_array(cold.train.matrix[users]) @ X
        length = np.sqrt(np.asarray(P.multiply(P).sum(axis=1)).ravel())
        return (diags_array(1 / np.maximum(length, 1e-12)) @ P @ C.T).toarray()

    return Scored(cold.train.users, cold.test.items, scores).best(k, recall, cold.test)


def popularities(cold: Cold, k: int) -> dict[str, float]:
    """What a list for everyone is worth."""
    there = cold.features.aligned(cold.train.items)
    to_matrix = FeatureMap.fit(there)
    X, C = to_matrix.matrix(there).toarray(), to_matrix.matrix(cold.features.aligned(cold.test.items)).toarray()
    counts = np.bincount(cold.train.matrix.indices, minlength=len(cold.train.items)).astype(np.float64)
    K = X @ X.T
    guessed = C @ X.T @ np.linalg.solve(K + 3 * np.eye(len(K)), np.log(counts))
    oracle = np.bincount(cold.test.matrix.indices, minlength=len(cold.test.items)).astype(np.float64)
    rng = np.random.default_rng(0)

    def worth(scores: Any) -> float:
        return Scored(cold.train.users, cold.test.items, scores).best(k, ndcg, cold.test)

    any_order = [worth(lambda users: rng.random((len(users), len(cold.test.items)))) for _ in range(10)]
    for_all = {"guessed": guessed, "oracle": oracle}
    lists = {name: worth(lambda users, s=s: np.tile(s, (len(users), 1))) for name, s in for_all.items()}
    return {"random": round(float(np.mean(any_order)), 4), **lists}


def ablations(name: str, features: ek.Features, sentences: str | None) -> Iterator[tuple[str, ek.Features]]:
    """Features with some columns only, and what to call them."""
    for columns in ABLATED[name]:
        yield " + ".join(columns), features.select(columns)
    if sentences is not None and name == "ml-1m":
        encode = ek.sentence_encoder(sentences)
        for columns in (["abstract"], list(features.columns)):
            vectors = features.select(columns).encoded("abstract", encode)
            yield f"{' + '.join(columns)}, abstracts as vectors", vectors


def fitted(solver: Any, cold: Cold) -> tuple[ek.Recommender, float]:
    began = time.perf_counter()
    model = solver.fit(cold.train, item_features=cold.features)
    return model, round(time.perf_counter() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("set", choices=list(CHOSEN))
    parser.add_argument("--tower", action="store_true", help="a two-tower model instead of the closed form")
    parser.add_argument("--tune", action="store_true", help="validate every setting that was tried, and read no test")
    parser.add_argument("--ablate", action="store_true", help="validate with fewer columns, and read no test")
    parser.add_argument("--sentences", help="directory of a sentence encoder, for --ablate of ml-1m")
    args = parser.parse_args()
    cold = {"citeulike-a": citeulike_a, "citeulike-t": citeulike_t, "ml-1m": movielens}[args.set](args.data)
    chosen = (TOWERS if args.tower else CHOSEN)[args.set]
    k, metric = (10, ndcg) if args.set == "ml-1m" else (100, recall)
    name = f"{metric.__name__}@{k}"
    result: dict[str, Any] = {"benchmark": f"cold items of {args.set}, {name}", "validation": []}
    if args.tune:
        part = apart(cold.train, cold.features, seed=1)
        for change in TRIED_TOWERS if args.tower else TRIED[args.set]:
            solver = dataclasses.replace(chosen, **change)
            model, seconds = fitted(solver, part)
            found = {"solver": repr(solver), "seconds": seconds, name: of_cold(model, part, k, metric)}
            print(found, flush=True)
            result["validation"].append(found)
    elif args.ablate:
        part = apart(cold.train, cold.features, seed=1)
        for columns, features in ablations(args.set, cold.features, args.sentences):
            model, seconds = fitted(chosen, part._replace(features=features))
            found = {"columns": columns, name: of_cold(model, part._replace(features=features), k, metric)}
            print(found, flush=True)
            result["validation"].append(found)
    elif args.tower:
        model, seconds = fitted(chosen, cold)
        result["tower"] = {"solver": repr(chosen), "seconds": seconds, name: of_cold(model, cold, k, metric)}
    elif args.set == "ml-1m":
        warm_train, warm_test = ek.split(cold.train, test=0.1, seed=0)
        result["baselines"] = popularities(cold, k)
        model, seconds = fitted(chosen, cold._replace(train=warm_train))
        result["closed form"] = {"solver": repr(chosen), "seconds": seconds, name: of_cold(model, cold, k, metric)}
        for label, one in (("warm, with features", model), ("warm, plain", chosen.fit(warm_train))):
            report = ek.evaluate(one, warm_test, k=10, intervals=None)
            result[label] = {x: round(report[x], 4) for x in ("ndcg@10", "recall@10")}
    else:
        result["baselines"] = {"profile": profile(cold, k)}
        model, seconds = fitted(chosen, cold)
        result["closed form"] = {"solver": repr(chosen), "seconds": seconds, name: of_cold(model, cold, k, metric)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
