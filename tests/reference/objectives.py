"""The objectives of the solvers, straight from their definitions, in float64 over dense arrays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


def als(data, solver, W, H, user_bias, item_bias, mean):
    R = data.matrix
    W, H = W.astype(np.float64), H.astype(np.float64)
    rows, columns = data.user_rows(), R.indices
    scores = mean + user_bias[rows] + item_bias[columns] + np.sum(W[rows] * H[columns], axis=1)
    n_u, n_i = np.diff(R.indptr), np.bincount(columns, minlength=R.shape[1])
    return (
        np.sum((R.data - scores) ** 2)
        + solver.reg * np.sum(n_u.astype(float) ** solver.exponent * (np.sum(W**2, axis=1) + user_bias**2.0))
        + solver.reg * np.sum(n_i.astype(float) ** solver.exponent * (np.sum(H**2, axis=1) + item_bias**2.0))
    )


def sgd(data, solver, *model):
    """A penalty once an entry is that of ALS with exponent 1."""
    return als(data, SimpleNamespace(reg=solver.reg, exponent=1.0), *model)


def implicit_als(data, solver, W, H, *_):
    R, (n, m), a0 = data.matrix, data.matrix.shape, solver.unobserved_weight
    W, H = W.astype(np.float64), H.astype(np.float64)
    scores = W @ H.T
    observed = scores[data.user_rows(), R.indices]
    n_u, n_i = np.diff(R.indptr), np.bincount(R.indices, minlength=m)
    return (
        np.sum(solver.alpha * R.data * (1 - observed) ** 2)
        + a0 * np.sum(scores**2)
        + solver.reg * np.sum((n_u + a0 * m) ** solver.exponent * np.sum(W**2, axis=1))
        + solver.reg * np.sum((n_i + a0 * n) ** solver.exponent * np.sum(H**2, axis=1))
    )


def implied_als(data, solver, W, H, user_bias, item_bias, mean, B):
    """`als` with rows drawn to B'f_u and D'g_i; D, which a model does not keep, at its optimum."""
    O = np.zeros(data.matrix.shape)
    O[data.user_rows(), data.matrix.indices] = 1
    l_u, l_i = (solver.reg * np.sum(O, axis=axis) ** solver.exponent for axis in (1, 0))
    F, G = O / np.sqrt(O.sum(axis=1, keepdims=True)), O.T / np.sqrt(O.T.sum(axis=1, keepdims=True))
    W, H, B = (X.astype(np.float64) for X in (W, H, B))
    D = np.linalg.solve((G.T * l_i) @ G + solver.implicit_reg * np.eye(len(W)), (G.T * l_i) @ H)
    return (
        als(data, solver, W, H, user_bias, item_bias, mean)
        + l_u @ np.sum((W - F @ B) ** 2 - W**2, axis=1)
        + l_i @ np.sum((H - G @ D) ** 2 - H**2, axis=1)
        + solver.implicit_reg * (np.sum(B**2) + np.sum(D**2))
    )


def featured(data, model, user_features, item_features):
    """Objective of ALS and ImplicitALS whose rows are drawn to maps of features; a side without them to 0."""
    solver, side = model.solver, model.item_side
    R, W, H = data.matrix.toarray().astype(float), model.W.astype(float), side.H.astype(float)
    there = np.zeros(R.shape, bool)
    there[np.repeat(np.arange(len(R)), np.diff(data.matrix.indptr)), data.matrix.indices] = True
    n_u, n_i = there.sum(axis=1), there.sum(axis=0)
    if model.predicts_ratings:
        b, c = model.user_bias.astype(float), side.bias.astype(float)
        total = float(np.sum((R - side.mean - b[:, None] - c - W @ H.T)[there] ** 2))
        l_u, l_i = solver.reg * n_u**solver.exponent, solver.reg * n_i**solver.exponent
        W, H = np.column_stack([W, b]), np.column_stack([H, c])
    else:
        a0, S = solver.unobserved_weight, W @ H.T
        total = float(np.sum((solver.alpha * R * (1 - S) ** 2)[there]) + a0 * np.sum(S**2))
        l_u, l_i = (solver.reg * (n + a0 * other) ** solver.exponent for n, other in ((n_u, len(n_i)), (n_i, len(n_u))))
    for X, reg, features, encoder, ids in (
        (W, l_u, user_features, model.user_encoder, data.users),
        (H, l_i, item_features, model.item_encoder, data.items),
    ):
        if features is not None:
            M = encoder.parts[0][0][0].astype(float)
            X = X - encoder.features.matrix(features.aligned(ids)).toarray().astype(float) @ M
            total += solver.feature_reg * reg.mean() * np.sum(M**2)
        total += float(reg @ np.sum(X**2, axis=1))
    return total
