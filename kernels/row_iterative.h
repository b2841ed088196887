// A row improved, not solved: a few steps from where it stood, at n k work a step in place of n k^2 in all.
//
// Both take a row whose gathered factors fit in the second-level cache: they are gathered once and walked several
// times.
#pragma once

#include "rows.h"

namespace eckart {

// Gathers the row and sets u and b to the start, e = v~ - b r - Y~ u; returns n, padded with zero rows.
template <class Kind, bool with_bias>
inline std::size_t begin_iteration(const Problem<Kind, with_bias>& P, std::int64_t row, Scratch& m) {
    const std::size_t n = P.length(row), np = padded(n);
    begin_row(P, row, m);
    gather(P, P.R.indptr[row], P.R.indptr[row + 1], n, m);
    std::memset(m.Y + n * m.kp, 0, (np - n) * m.kp * sizeof(float));
    for (std::size_t t = n; t < np; ++t) m.root[t] = m.v[t] = 0;
    const float *x = P.X + row * P.k, bias = with_bias ? P.bias[row] : 0;
    for (std::size_t f = 0; f < P.k; ++f) m.u[f] = P.prior ? x[f] - m.p[f] : x[f];
    for (std::size_t t = 0; t < np; t += W)
        store(m.e + t, load(m.v + t) - bias * load(m.root + t) - dots(m.Y + t * m.kp, m.kp, m.u, m.kp));
    return np;
}

// |e|^2 + l_u b^2 + u^T D u
template <class Kind, bool with_bias>
inline double value(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t np, const Scratch& m) {
    double total = dot(m.e, m.e, np);
    if (with_bias) total += static_cast<double>(P.reg[row]) * P.bias[row] * P.bias[row];
    for (std::size_t f = 0; f < P.k; ++f) total += static_cast<double>(m.D[f]) * m.u[f] * m.u[f];
    return total;
}

// Conjugate gradients with a diagonal preconditioner. In the basis where the shared term is diagonal the entries' own
// term is nearly so: its diagonal is taken to be sum_t w_t times the columns' mean square, `mean_square` (k).
template <class Kind, bool with_bias>
inline bool solve_cg(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t steps, const float* mean_square,
                     Scratch& m) {
    const std::size_t np = begin_iteration(P, row, m), kp = m.kp;
    float *r = m.g, *p = m.s, *q = m.z, *inverse = m.inverse;
    double total = value(P, row, np, m);
    const float weight = dot(m.root, m.root, np);
    std::memset(r, 0, kp * sizeof(float));
    add_rows(m.Y, kp, m.e, np, kp, r);
    float r_b = 0, p_b = 0;
    const float inverse_b = with_bias ? 1 / (P.reg[row] + weight) : 0;
    if (with_bias) r_b = dot(m.root, m.e, np) - P.reg[row] * P.bias[row];
    for (std::size_t f = 0; f < kp; ++f) {
        inverse[f] = f < P.k ? 1 / (m.D[f] + weight * mean_square[f]) : 0;
        r[f] -= m.D[f] * m.u[f];
        p[f] = inverse[f] * r[f];
    }
    p_b = inverse_b * r_b;
    double rz = static_cast<double>(dot(r, p, kp)) + r_b * p_b;
    for (std::size_t step = 0; step < steps && rz > 0; ++step) {
        for (std::size_t f = 0; f < kp; f += W) store(q + f, load(m.D + f) * load(p + f));
        float q_b = P.reg[row] * p_b;
        for (std::size_t t = 0; t < np; t += W) {  // W rows at a time, so that the second look finds them in L1
            const vec d = dots(m.Y + t * kp, kp, p, kp) + p_b * load(m.root + t);
            store(m.v + t, d);  // the targets are done with
            add_rows(m.Y + t * kp, kp, m.v + t, W, kp, q);
        }
        if (with_bias) q_b += dot(m.root, m.v, np);
        const double curvature = static_cast<double>(dot(p, q, kp)) + (with_bias ? p_b * q_b : 0);
        const auto length = static_cast<float>(rz / curvature);
        if (!(curvature > 0)) break;
        total -= rz * length;
        axpy(length, p, m.u, kp);
        axpy(-length, q, r, kp);
        if (with_bias) {
            P.bias[row] += length * p_b;
            r_b -= length * q_b;
        }
        for (std::size_t f = 0; f < kp; f += W) store(q + f, load(inverse + f) * load(r + f));
        const double next = static_cast<double>(dot(r, q, kp)) + r_b * inverse_b * r_b;
        const auto beta = static_cast<float>(next / rz);
        for (std::size_t f = 0; f < kp; f += W) store(p + f, load(q + f) + beta * load(p + f));
        p_b = inverse_b * r_b + beta * p_b;
        rz = next;
    }
    end_row(P, row, m, m.u);
    P.objective[row] = total;
    return std::isfinite(total);
}

// Block coordinate descent (iALS++, Rendle et al. 2021): each block of factors is solved exactly, the others being
// held.
template <class Kind, bool with_bias>
inline bool solve_blocks(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t sweeps, Scratch& m) {
    constexpr std::size_t width = 64;
    const std::size_t np = begin_iteration(P, row, m), kp = m.kp;
    const float weight = dot(m.root, m.root, np);
    for (std::size_t sweep = 0; sweep < sweeps; ++sweep) {
        if (with_bias) {
            const float step = (dot(m.root, m.e, np) - P.reg[row] * P.bias[row]) / (weight + P.reg[row]);
            P.bias[row] += step;
            axpy(-step, m.root, m.e, np);
        }
        for (std::size_t from = 0; from < kp; from += width) {
            const std::size_t d = std::min(width, kp - from);
            rank_update<Update::set>(m.A, d, m.Y + from, kp, np, d);
            std::memset(m.g, 0, d * sizeof(float));
            add_rows(m.Y + from, kp, m.e, np, d, m.g);
            for (std::size_t f = 0; f < d; ++f) {
                m.A[f * d + f] += m.D[from + f];
                m.g[f] -= m.D[from + f] * m.u[from + f];
            }
            if (!cholesky(m.A, d, d, m.inverse)) return false;
            solve_transposed(m.A, d, d, m.inverse, m.g);
            solve_upper(m.A, d, d, m.inverse, m.g);
            axpy(1, m.g, m.u + from, d);
            for (std::size_t t = 0; t < np; t += W)
                store(m.e + t, load(m.e + t) - dots(m.Y + t * kp + from, kp, m.g, d));
        }
    }
    end_row(P, row, m, m.u);
    P.objective[row] = value(P, row, np, m);
    return std::isfinite(P.objective[row]);
}

}  // namespace eckart
