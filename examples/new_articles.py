"""Articles of the day, by tags and citations or by words, before anyone has saved them.

python examples/new_articles.py [DATA]      # DATA/citeulike-a and DATA/citeulike-t; half a minute

Without DATA, a small library that cites itself stands in.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, eye_array

import eckart as ek


def made_up():
    """Three fields, whose articles cite each other and whose readers stay in their field."""
    rng = np.random.default_rng(0)
    field = np.arange(90) % 3
    links = (field[:, None] == field) & (rng.random((90, 90)) < 0.2)
    saved = (np.arange(60)[:, None] % 3 == field) & (rng.random((60, 90)) < 0.4)
    users, items = np.nonzero(saved)
    return (
        ek.read({"user": users, "item": items}),
        csr_array((links | links.T | np.eye(90, dtype=bool)).astype(np.float32)),
        "links",
    )


def citeulike(folder: Path, what: str):
    """Pairs, and words (citeulike-t) or links (citeulike-a) of each article; an article is linked to itself."""
    pairs, content = np.load(folder / "interactions.npz"), np.load(folder / "item_content.npz")
    name = "word" if what == "words" else "citation"
    indices, indptr = content[f"{name}_indices"].astype(np.int32), content[f"{name}_indptr"]
    values = content["word_counts"] if what == "words" else np.ones(len(indices))
    m = len(indptr) - 1
    matrix = csr_array((values.astype(np.float32), indices, indptr), shape=(m, 20000 if what == "words" else m))
    if what == "links":
        matrix = csr_array(((matrix + matrix.T + eye_array(m)) > 0).astype(np.float32))
    return ek.read({"user": pairs["user"].astype(int), "item": pairs["item"].astype(int)}), matrix, what


def report(data, matrix, what):
    """A fifth of the articles is new; how many of those that people save are among the ten offered."""
    articles = ek.read_features({"item": np.arange(matrix.shape[0]), what: matrix})
    old, new = ek.split(data, test=0.2, by="item", seed=0)
    model = ek.ImplicitALS(rank=4 if len(data.users) < 100 else 64, unobserved_weight=0.03, reg=0.03, exponent=0.5)
    model = model.fit(old, item_features=articles).add_items(articles.take(articles.ids.rows(new.items.ids)))
    report = ek.evaluate(model, new, k=5, items=new.items.ids)
    low, high = report.intervals["recall@5"]
    print(f"{what}: recall@5 among {len(new.items):,} new articles {report['recall@5']:.3f} ({low:.3f} to {high:.3f})")


if len(sys.argv) > 1:
    report(*citeulike(Path(sys.argv[1]) / "citeulike-a", "links"))
    report(*citeulike(Path(sys.argv[1]) / "citeulike-t", "words"))
else:
    report(*made_up())
