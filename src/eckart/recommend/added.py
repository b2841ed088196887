"""People and items that training has not seen, by what is known of them: the encoders of a fitted model at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.core.csr import csr
from eckart.data.columns import quoted
from eckart.data.features import Features, read_features
from eckart.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from eckart.recommend.encoder import Encoder
    from eckart.recommend.recommender import Recommender

__all__ = ["one_person", "points_of_users", "required", "with_items", "with_users"]


def one_person(encoder: Encoder | None, features: Features | Mapping[str, Any]) -> Features:
    """Features of one person without an id, from a mapping of column to value."""
    encoder = required(encoder, "users")
    if not isinstance(features, Mapping):
        if len(features) != 1:
            raise ValueError(f"got features of {len(features)} people beside one history: give those of that person")
        return Features(Vocabulary(["newcomer"]), features.columns)
    kinds = encoder.features.kinds
    if odd := [name for name in features if name not in kinds]:
        raise ValueError(f"the model was fitted to {quoted(list(kinds))}, not to {quoted(odd[:1])}: leave it out")
    given = {name: features.get(name) for name in kinds}
    rows = {name: _alone(value, kinds[name]) for name, value in given.items() if value is not None}
    unknown = encoder.features.unknown(1).columns
    known = read_features({"id": ["newcomer"], **rows}, id="id", kinds={name: kinds[name] for name in rows}).columns
    return Features(Vocabulary(["newcomer"]), {**unknown, **known})


def _alone(value: Any, kind: str) -> Any:
    return np.asarray(value)[None, :] if kind == "vector" else [value]


def points_of_users(encoder: Encoder | None, features: Features | None, users: Vocabulary) -> np.ndarray:
    """What the encoder says of each of `users`, (n, k + 1); without features, what it says of anybody."""
    encoder = required(encoder, "users")
    return encoder.encode_missing(len(users)) if features is None else encoder.encode(features.aligned(users))


def with_users(model: Recommender, features: Features) -> Recommender:
    """See `Recommender.encode_users`."""
    points = required(model.user_encoder, "users").encode(features)
    n, m = len(features), len(model.items)
    none = csr(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(n + 1, np.int64), (n, m))
    drift = model.drift
    if drift is not None:  # of people without a history: none
        nothing = drift.users._replace(
            edges=np.zeros((n, drift.users.edges.shape[1]), np.int64),
            heights=np.zeros((n, drift.users.heights.shape[1]), np.float32),
        )
        drift = drift._replace(users=nothing)
    people = dataclasses.replace(
        model,
        users=features.ids,
        W=np.ascontiguousarray(points[:, :-1]),
        user_bias=np.ascontiguousarray(points[:, -1]),
        seen=none,
        warm=True,
        drift=drift,
        user_points=points,
    )
    return people.with_catalogue_of(model)


def with_items(model: Recommender, features: Features) -> Recommender:
    """See `Recommender.add_items`."""
    encoder = required(model.item_encoder, "items")
    if len(features) and features.ids.is_text != model.items.is_text:
        here, there = ("text" if v.is_text else "integers" for v in (model.items, features.ids))
        raise ValueError(f"item ids are {here} in the model and {there} in the features: give both as the same")
    new = features.take(np.flatnonzero(model.items.rows(features.ids.ids) < 0))
    if not len(new):
        return model
    points = encoder.encode(new)
    items = Vocabulary.of(np.concatenate([model.items.ids, new.ids.ids]))
    old, at = items.rows(model.items.ids), items.rows(new.ids.ids)  # ascending, both

    def spread(array: np.ndarray, added: np.ndarray | float = 0) -> np.ndarray:
        out = np.zeros((len(items), *array.shape[1:]), array.dtype)
        out[old], out[at] = array, added
        return out

    side, seen = model.item_side, model.seen
    # What a solver keeps for each item is nothing for one without entries.
    shapes, larger = (model.solver.extra_shapes(m) for m in (len(model.items), len(items)))
    extra = {name: a if shapes[name] == larger[name] else spread(a) for name, a in side.extra.items()}
    drift = model.drift
    if drift is not None:
        steps = drift.items._replace(edges=spread(drift.items.edges), heights=spread(drift.items.heights))
        drift = drift._replace(items=steps)
    return dataclasses.replace(
        model,
        items=items,
        item_side=side._replace(
            H=spread(side.H, points[:, :-1]),
            bias=spread(side.bias, points[:, -1]),
            popularity=spread(side.popularity),
            extra=extra,
            cold=spread(np.zeros(len(model.items), bool) if side.cold is None else side.cold, True),
        ),
        seen=csr(seen.data, old[seen.indices].astype(np.int32), seen.indptr, (len(model.users), len(items))),
        drift=drift,
    )


def required(encoder: Encoder | None, what: str) -> Encoder:
    """Give the encoder of "users" or "items", or raise ValueError where a model has none."""
    if encoder is None:
        raise ValueError(
            f"the model was fitted without features of {what}, or by a torch module, which is code and not kept: fit "
            f"it with {what[:-1]}_features=, and the module again"
        )
    return encoder
