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
