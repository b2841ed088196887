"""Small rating data for the laws: power-law-ish, with single entries, unrated cells and distinct ratings."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary


def interactions(user_ids, item_ids, values, rated=True):
    """Interactions of three parallel lists."""
    users, items = Vocabulary.of(user_ids), Vocabulary.of(item_ids)
    values = np.asarray(values, np.float32)
    return Interactions.of(users.rows(user_ids), items.rows(item_ids), values, users, items, rated=rated)


@st.composite
def triples(draw, users=12, items=9, least=4):
    """(user numbers, item numbers, ratings): unique pairs, ratings in 1..5 and all different."""
    seed = draw(st.integers(0, 2**32 - 1))
    n, m = draw(st.integers(least, users)), draw(st.integers(least, items))
    rng = np.random.default_rng(seed)
    entries = draw(st.integers(max(n, m), n * m))
    # Every user and item once, then more at random.
    cells = set(zip(np.arange(max(n, m)) % n, np.arange(max(n, m)) % m, strict=True))
    extra = rng.permutation(n * m)
    cells |= {(int(c) // m, int(c) % m) for c in extra[: max(0, entries - len(cells))]}
    u, i = np.array(sorted((int(a), int(b)) for a, b in cells)).T
    return u, i, (1 + rng.permutation(4001)[: len(u)] / 1000).astype(np.float32)


def ratings(**sizes):
    """Interactions with integer ids."""
    return triples(**sizes).map(lambda t: interactions(*t))
