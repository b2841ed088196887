"""The readable twins of the kernels: the equations in float64 NumPy, one row at a time."""

from __future__ import annotations

import numpy as np


def explicit_rows(indptr, indices, values, Y, column_bias, mean, reg, spectrum=None, prior=None, bias=True):
    """argmin_{x,b} sum_t (r_t - mean - c_t - b - x.y_t)^2 + reg b^2 + (x - p)' (reg I + diag(spectrum)) (x - p)."""
    weights, targets = np.ones(len(values)), values - mean - column_bias[indices]
    return _rows(indptr, indices, weights, targets, Y, reg, spectrum, prior, bias)


def implicit_rows(indptr, indices, values, Y, alpha, reg, spectrum=None, prior=None):
    """argmin_x sum_t alpha r_t (1 - x.y_t)^2 + (x - p)' (reg I + diag(spectrum)) (x - p)."""
    X, _, objective = _rows(indptr, indices, alpha * values, np.ones(len(values)), Y, reg, spectrum, prior, False)
    return X, objective


def _rows(indptr, indices, weights, targets, Y, reg, spectrum, prior, bias):
    Y, rows, k = Y.astype(np.float64), len(indptr) - 1, Y.shape[1]
    spectrum = np.zeros(k) if spectrum is None else spectrum
    X = np.zeros((rows, k)) if prior is None else prior.astype(np.float64)
    b, objective = np.zeros(rows), np.zeros(rows)
    for u in range(rows):
        t = slice(indptr[u], indptr[u + 1])
        if indptr[u] == indptr[u + 1]:
            continue
        Z = np.column_stack([Y[indices[t]], np.full(indptr[u + 1] - indptr[u], float(bias))])
        D = np.diag(np.append(reg[u] + spectrum, reg[u] if bias else 1.0))
        w, v = weights[t].astype(np.float64), targets[t] - Z[:, :k] @ X[u]
        z = np.linalg.solve((Z.T * w) @ Z + D, Z.T @ (w * v))
        X[u] += z[:k]
        b[u] = z[k]
        objective[u] = np.sum(w * (v - Z @ z) ** 2) + z @ D @ z
    return X, b, objective


def row_value(indptr, indices, weights, targets, Y, reg, spectrum, X, bias):
    """The function that a row minimises, at X and bias, without a prior."""
    value = np.zeros(len(indptr) - 1)
    for u in range(len(value)):
        t = slice(indptr[u], indptr[u + 1])
        e = targets[t] - bias[u] - Y[indices[t]].astype(np.float64) @ X[u]
        value[u] = np.sum(weights[t] * e**2) + (reg[u] + spectrum) @ X[u] ** 2.0 + reg[u] * bias[u] ** 2.0
        value[u] *= indptr[u] < indptr[u + 1]
    return value


def cg_rows(indptr, indices, values, Y, column_bias, mean, reg, spectrum, prior, X, bias, steps):
    """Steps of conjugate gradients on each row (factors, bias) from (X, bias), preconditioned by a diagonal."""
    X, bias, Y = X.astype(np.float64), bias.astype(np.float64), Y.astype(np.float64)
    for u in range(len(X)):
        here = slice(indptr[u], indptr[u + 1])
        Z = np.column_stack([Y[indices[here]], np.ones(indptr[u + 1] - indptr[u])])
        D = np.append(reg[u] + spectrum.astype(np.float64), reg[u])
        M = D + len(Z) * np.append(np.mean(Y**2, axis=0), 1)
        target = values[here].astype(np.float64) - mean - column_bias[indices[here]]
        p_u = np.append(prior[u], 0.0)
        x = np.append(X[u], bias[u]) - p_u
        r = Z.T @ (target - Z @ (x + p_u)) - D * x
        p = r / M
        for _ in range(steps):
            q = Z.T @ (Z @ p) + D * p
            rz = r @ (r / M)
            length = rz / (p @ q)
            x, r = x + length * p, r - length * q
            p = r / M + (r @ (r / M)) / rz * p
        X[u], bias[u] = (x + p_u)[:-1], x[-1]
    return X, bias


def rotate(Y, Q):
    """Y Q."""
    return Y.astype(np.float64) @ Q


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


def sgd_blocks(indptr, indices, values, row_bounds, column_bounds, row_at, place_of):
    """Rows of every block: {(p, q): [(place of the row, [(place of the column, value), ...]), ...]}."""
    blocks, grid = {}, range(len(row_bounds) - 1)
    for p in grid:
        for q in grid:
            blocks[p, q] = []
            for place in range(row_bounds[p], row_bounds[p + 1]):
                own = slice(indptr[row_at[place]], indptr[row_at[place] + 1])
                row = sorted(zip(place_of[indices[own]].tolist(), values[own].tolist(), strict=True))
                row = [(c, r) for c, r in row if column_bounds[q] <= c < column_bounds[q + 1]]
                blocks[p, q].append((place, row))
    return blocks


def mix(x):
    """Finalizer of SplitMix64, on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def sgd_draws(blocks, column_bounds, negatives, draw):
    """The blocks with entries of 1 and, after a row's entries, its drawn cells of 0."""
    size = len(column_bounds) - 1
    n_u = {}
    for rows in blocks.values():
        for place, row in rows:
            n_u[place] = n_u.get(place, 0) + len(row)
    drawn = {}
    for (p, q), rows in blocks.items():
        left, width = int(column_bounds[q]), int(column_bounds[q + 1] - column_bounds[q])
        drawn[p, q] = []
        for place, row in rows:
            seed = mix(draw ^ mix(place * size + q))
            share = negatives * width / int(column_bounds[-1])
            count = int(np.floor(n_u[place] * share + (mix(seed) >> 11) * 2.0**-53))
            cells = [left + ((mix((seed + j) % 2**64) >> 32) * width >> 32) for j in range(1, count + 1)]
            drawn[p, q].append((place, [(c, 1.0) for c, _ in row] + [(c, 0.0) for c in cells]))
    return drawn


def logistic_rows(indptr, indices, Y, column_bias, cell, reg, steps):
    """Majorise-minimise with the curvature's bound 1/4 and Nesterov's momentum, in float64, one row at a time."""
    Y = Y.astype(np.float64)
    X = np.zeros((len(indptr) - 1, Y.shape[1]))
    for u in range(len(X)):
        Z = Y[indices[indptr[u] : indptr[u + 1]]]
        if not len(Z):
            continue
        A = reg[u] * np.eye(Y.shape[1]) + (cell[u] * Y.T @ Y + Z.T @ Z) / 4
        x = last = np.zeros(Y.shape[1])
        for j in range(steps):
            at = x + j / (j + 3) * (x - last)
            p_all, p_own = (
                1 / (1 + np.exp(-s))
                for s in (column_bias + Y @ at, column_bias[indices[indptr[u] : indptr[u + 1]]] + Z @ at)
            )
            g = Z.T @ (1 - p_own) - cell[u] * Y.T @ p_all - reg[u] * at
            last, x = x, at + np.linalg.solve(A, g)
        X[u] = x
    return X


def sgd_visits(rows):
    """Entries of a block in the order of the visits: two rows in turns, each replaced by the next when it ends."""
    waiting = [[(place, c, r) for c, r in row] for place, row in rows if row]
    lanes = [waiting.pop(0) if waiting else [] for _ in range(2)]
    while all(lanes):
        for _ in range(min(map(len, lanes))):
            yield from [lane.pop(0) for lane in lanes]
        lanes = [lane or (waiting.pop(0) if waiting else []) for lane in lanes]
    yield from lanes[0] + lanes[1]


def sgd_epoch(blocks, strata, W, H, row_scalars, column_scalars, k, mean, reg, step, logistic=False):
    """One pass in float64, stratum by stratum; scalars are (bias, sum of squared errors). No row bias if logistic."""
    W, H, a, b = (x.astype(np.float64) for x in (W, H, row_scalars, column_scalars))
    loss, size = 0.0, len(strata)
    for s in strata:
        for p in range(size):
            for u, i, r in sgd_visits(blocks[p, (p + s) % size]):
                score = mean + a[u, 0] + b[i, 0] + W[u] @ H[i]
                e = r - (1 / (1 + np.exp(-score)) if logistic else score)
                step_w, step_h = step / np.sqrt(1 + a[u, 1] / k), step / np.sqrt(1 + b[i, 1] / k)
                W[u], H[i] = W[u] + step_w * (e * H[i] - reg * W[u]), H[i] + step_h * (e * W[u] - reg * H[i])
                for side, row in ((a, u), (b, i)):
                    side[row, 0] += (
                        0 if logistic and side is a else step / np.sqrt(1 + side[row, 1]) * (e - reg * side[row, 0])
                    )
                    side[row, 1] += e**2
                loss += -np.log(1 - abs(e)) if logistic else e**2
    return loss, W, H, a, b


def posterior_rows(indptr, indices, values, Y, alpha, precision, prior, noise=None):
    """p + U^-1 (U^-T g + e) with A = L + alpha sum y y' = U'U and g = alpha sum (v - p.y) y: one row at a time."""
    X = prior.astype(np.float64)
    for u in range(len(indptr) - 1):
        Z = Y[indices[indptr[u] : indptr[u + 1]]].astype(np.float64)
        v = values[indptr[u] : indptr[u + 1]].astype(np.float64)
        A = precision.astype(np.float64) + alpha * Z.T @ Z
        X[u] += np.linalg.solve(A, alpha * Z.T @ (v - Z @ prior[u].astype(np.float64)))
        if noise is not None:
            X[u] += np.linalg.solve(np.linalg.cholesky(A).T, noise[u].astype(np.float64))
    return X


def posterior_spread(indptr, indices, Y, alpha, precision, target_indptr, targets):
    """y' A^-1 y for the targets of each row, A as above."""
    spread = np.zeros(len(targets))
    for u in range(len(indptr) - 1):
        Z = Y[indices[indptr[u] : indptr[u + 1]]].astype(np.float64)
        T = Y[targets[target_indptr[u] : target_indptr[u + 1]]].astype(np.float64)
        A = precision.astype(np.float64) + alpha * Z.T @ Z
        spread[target_indptr[u] : target_indptr[u + 1]] = np.sum(T * np.linalg.solve(A, T.T).T, axis=1)
    return spread


def sample_link(F, E, B, strength, noise):
    """Each row of B in turn: its conditional mean given the others, and noise / sqrt(d + s); E stays X - F B."""
    E, B = E.astype(np.float64), B.astype(np.float64)
    for j in range(F.shape[1]):
        f = F[:, j].astype(np.float64)
        E += np.outer(f, B[j])
        precision = f @ f + strength
        B[j] = f @ E / precision + noise[j] / np.sqrt(precision)
        E -= np.outer(f, B[j])
    return E, B
