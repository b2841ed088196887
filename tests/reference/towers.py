"""The losses of two towers, cell by cell, in float64: the sums as losses.py has them in its first lines."""

from __future__ import annotations

import numpy as np


def softmax(s, user, w, S, omega, temperature):
    total = 0.0
    for t, u in enumerate(user):
        others = sum(omega[j] * np.exp(S[u, j] / temperature) for j in range(S.shape[1]))
        total += w[t] * (np.log(np.exp(s[t] / temperature) + others) - s[t] / temperature)
    return total


def bpr(s, user, w, S, omega, temperature, m):
    return sum(
        w[t] / m * omega[j] * np.log1p(np.exp((S[u, j] - s[t]) / temperature))
        for t, u in enumerate(user)
        for j in range(S.shape[1])
    )


def ccl(s, user, w, S, omega, margin, strength, m):
    return sum(
        w[t] * (1 - s[t] + strength / m * sum(omega[j] * max(0.0, S[u, j] - margin) for j in range(S.shape[1])))
        for t, u in enumerate(user)
    )


def squared(X, user, P, Y, omega, weight, reg_user, reg_entry, unobserved_weight):
    total = sum(l * x @ x for l, x in zip(reg_user, X, strict=True))
    for t, u in enumerate(user):
        total += weight[t] * (1 - X[u] @ P[t]) ** 2 + reg_entry[t] * P[t] @ P[t]
    return total + unobserved_weight * sum(omega[j] * (x @ Y[j]) ** 2 for x in X for j in range(len(Y)))
