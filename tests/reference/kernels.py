"""The readable twins of the kernels: the equations in float64 NumPy, one row at a time."""

from __future__ import annotations

import numpy as np


def explicit_rows(indptr, indices, values, Y, column_bias, mean, reg):
    """argmin_{x,b} sum_t (r_t - mean - c_t - b - x.y_t)^2 + reg (|x|^2 + b^2), each row on its own."""
    Y, rows, k = Y.astype(np.float64), len(indptr) - 1, Y.shape[1]
    X, bias, objective = np.zeros((rows, k)), np.zeros(rows), np.zeros(rows)
    for u in range(rows):
        columns = indices[indptr[u] : indptr[u + 1]]
        if len(columns) == 0:
            continue
        v = values[indptr[u] : indptr[u + 1]].astype(np.float64) - mean - column_bias[columns]
        Z = np.column_stack([Y[columns], np.ones(len(columns))])
        z = np.linalg.solve(Z.T @ Z + reg[u] * np.eye(k + 1), Z.T @ v)
        X[u], bias[u] = z[:k], z[k]
        objective[u] = np.sum((v - Z @ z) ** 2) + reg[u] * z @ z
    return X, bias, objective


def implicit_rows(indptr, indices, values, Y, gram, alpha, reg):
    """argmin_x sum_t alpha r_t (1 - x.y_t)^2 + x' gram x + reg |x|^2, each row on its own."""
    Y, rows, k = Y.astype(np.float64), len(indptr) - 1, Y.shape[1]
    X, objective = np.zeros((rows, k)), np.zeros(rows)
    for u in range(rows):
        Z = Y[indices[indptr[u] : indptr[u + 1]]]
        w = alpha * values[indptr[u] : indptr[u + 1]].astype(np.float64)
        if len(Z) == 0:
            continue
        x = np.linalg.solve(gram + (Z.T * w) @ Z + reg[u] * np.eye(k), Z.T @ w)
        X[u] = x
        objective[u] = np.sum(w * (1 - Z @ x) ** 2) + x @ gram @ x + reg[u] * x @ x
    return X, objective


def gram(Y):
    """Y^T Y."""
    Y = Y.astype(np.float64)
    return Y.T @ Y


def pair_scores(X, Y, row_bias, column_bias, mean, rows, columns):
    """mean + b_i + c_j + x_i . y_j; -1 contributes nothing."""
    score = np.full(len(rows), float(mean))
    for p, (i, j) in enumerate(zip(rows, columns, strict=True)):
        score[p] += row_bias[i] if i >= 0 else 0.0
        score[p] += column_bias[j] if j >= 0 else 0.0
        score[p] += float(X[i].astype(np.float64) @ Y[j]) if i >= 0 and j >= 0 else 0.0
    return score


def top_k(scores, excluded, top):
    """Best columns of a dense score matrix, ties to the lower column, excluded ones left out, -1 after."""
    items = np.full((len(scores), top), -1, dtype=np.int32)
    for q, row in enumerate(scores):
        order = [j for j in np.argsort(-row, kind="stable") if j not in excluded[q] and row[j] > -np.inf]
        items[q, : min(top, len(order))] = order[:top]
    return items
