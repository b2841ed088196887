"""Readable twins of the low-rank core: a metric's SVD by its roots, and a plan by trying every choice."""

from __future__ import annotations

import itertools

import numpy as np


def root(metric, size):
    """M^1/2 of a metric, given whole, as a diagonal, or not at all."""
    metric = np.eye(size) if metric is None else np.diag(metric) if metric.ndim == 1 else metric
    values, vectors = np.linalg.eigh(metric)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def metric_distance(difference, left, right):
    """||L^1/2 D R^1/2||_F^2."""
    m, n = difference.shape
    return np.sum((root(left, m) @ difference @ root(right, n)) ** 2)


def metric_errors(W, left, right):
    """Least squared error of every rank, from the singular values of L^1/2 W R^1/2."""
    s = np.linalg.svd(root(left, W.shape[0]) @ W @ root(right, W.shape[1]), compute_uv=False)
    return np.array([np.sum(s[k:] ** 2) for k in range(len(s) + 1)])


def best_allocation(costs, losses, budget):
    """Least total loss within the budget, over all combinations."""
    totals = [
        sum(loss[c] for loss, c in zip(losses, choice, strict=True))
        for choice in itertools.product(*(range(len(c)) for c in costs))
        if sum(cost[c] for cost, c in zip(costs, choice, strict=True)) <= budget
    ]
    return min(totals, default=None)
