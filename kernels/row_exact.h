// A row solved exactly, through k x k normal equations or, where it has fewer entries than factors, through n x n ones.
//
// Primal:  A = Y~^T Y~ + D, s = Y~^T r, g = Y~^T v~,
//     [ A    s           ] [u]   [ g      ]
//     [ s^T  r . r + l_u ] [b] = [ r . v~ ],
// with A = U^T U, z = U^-T g, q = U^-T s:  b = (r . v~ - z . q) / (r . r + l_u - q . q),  u = U^-1 (z - b q).
//
// Dual (Saunders, Gammerman, Vovk 1998; Woodbury for the shared D): with K = Y~ D^-1 Y~^T + r r^T / l_u,
//     (I + K) a = v~,     u = D^-1 Y~^T a,     b = r . a / l_u.
// D is diagonal, so every row can have its own l_u at no cost.
//
// At the optimum of a ridge system the value is v~ . v~ less right side times solution, or v~ . a: the objective comes
// for free.
#pragma once

#include "rows.h"

namespace eckart {

// What a stretch of a row's entries adds to its normal equations, beyond A, g and s in the scratch.
struct Sums {
    double vv = 0, rv = 0, rr = 0;
};

// x . y over n floats, any n: lanes in float32, as many sums as lanes, panels in float64.
inline double product(const float* x, const float* y, std::size_t n) {
    const std::size_t whole = n / W * W;
    double total = dot(x, y, whole);
    for (std::size_t t = whole; t < n; ++t) total += static_cast<double>(x[t]) * y[t];
    return total;
}

// A = Y~^T Y~, g = Y~^T v~ and s = Y~^T r over entries [from, end): the old values are overwritten.
template <class Kind, bool with_bias>
inline Sums accumulate(const Problem<Kind, with_bias>& P, std::int64_t from, std::int64_t end, Scratch& m) {
    Sums sums;
    std::memset(m.g, 0, m.kp * sizeof(float));
    if (with_bias) std::memset(m.s, 0, m.kp * sizeof(float));
    for (bool first = true; from < end; first = false) {
        const auto n = static_cast<std::size_t>(std::min<std::int64_t>(m.panel, end - from));
        gather(P, from, end, n, m);
        sums.vv += product(m.v, m.v, n);
        if (with_bias) {
            sums.rv += product(m.root, m.v, n);
            sums.rr += product(m.root, m.root, n);
        }
        add_rows(m.Y, m.kp, m.v, n, m.kp, m.g);
        if (with_bias) add_rows(m.Y, m.kp, m.root, n, m.kp, m.s);
        if (first)
            rank_update<Update::set>(m.A, m.kp, m.Y, m.kp, n, m.kp);
        else
            rank_update<Update::add>(m.A, m.kp, m.Y, m.kp, n, m.kp);
        from += static_cast<std::int64_t>(n);
    }
    return sums;
}

// Solves what `accumulate` left in the scratch.
template <class Kind, bool with_bias>
inline bool solve_normal(const Problem<Kind, with_bias>& P, std::int64_t row, const Sums& sums, Scratch& m) {
    for (std::size_t f = 0; f < m.kp; ++f) m.A[f * m.kp + f] += m.D[f];
    if (!cholesky(m.A, m.kp, m.kp, m.inverse)) return false;
    std::memcpy(m.z, m.g, m.kp * sizeof(float));
    solve_transposed(m.A, m.kp, m.kp, m.inverse, m.z);
    double pivot = 1, bias = 0;
    if (with_bias) {
        solve_transposed(m.A, m.kp, m.kp, m.inverse, m.s);
        pivot = sums.rr + P.reg[row] - dot(m.s, m.s, m.kp);
        bias = (sums.rv - dot(m.z, m.s, m.kp)) / pivot;
        axpy(-static_cast<float>(bias), m.s, m.z, m.kp);
        P.bias[row] = static_cast<float>(bias);
    }
    solve_upper(m.A, m.kp, m.kp, m.inverse, m.z);
    end_row(P, row, m, m.z);
    P.objective[row] = sums.vv - bias * sums.rv - dot(m.g, m.z, m.kp);
    return pivot > 0 && std::isfinite(P.objective[row]);
}

template <class Kind, bool with_bias>
inline bool solve_primal(const Problem<Kind, with_bias>& P, std::int64_t row, Scratch& m) {
    begin_row(P, row, m);
    return solve_normal(P, row, accumulate(P, P.R.indptr[row], P.R.indptr[row + 1], m), m);
}

template <class Kind, bool with_bias>
inline bool solve_dual(const Problem<Kind, with_bias>& P, std::int64_t row, Scratch& m) {
    const std::int64_t begin = P.R.indptr[row];
    const std::size_t n = P.length(row), np = padded(n);
    begin_row(P, row, m);
    weigh(P, begin, n, m);
    for (std::size_t t = n; t < np; ++t) m.root[t] = m.v[t] = 0;
    for (std::size_t f = 0; f < m.kp; ++f) m.z[f] = f < P.k ? 1 / std::sqrt(m.D[f]) : 0;
    float* T = m.Y;  // D^-1/2 Y~^T: kp x np, so that K is a rank-k update like any other
    for (std::size_t t = 0; t < np; t += W) {
        const vec root = load(m.root + t);
        for (std::size_t f = 0; f < m.kp; f += W) {
            vec block[W];
            for (std::size_t q = 0; q < W; ++q)
                block[q] =
                    t + q < n ? load_first(P.factors(begin + static_cast<std::int64_t>(t + q)) + f, P.k - f) : vec{};
            transpose(block);
#pragma GCC unroll 16
            for (std::size_t q = 0; q < W; ++q) store(T + (f + q) * np + t, block[q] * root * m.z[f + q]);
        }
    }
    if (P.prior) {
        for (std::size_t f = 0; f < P.k; ++f) m.u[f] = -m.p[f] * std::sqrt(m.D[f]);
        add_rows(T, np, m.u, m.kp, np, m.v);
    }
    rank_update<Update::set>(m.A, np, T, np, m.kp, np);
    for (std::size_t i = 0; i < np; ++i) {
        m.A[i * np + i] += 1;
        if (with_bias) axpy(m.root[i] / P.reg[row], m.root + i / W * W, m.A + i * np + i / W * W, np - i / W * W);
    }
    if (!cholesky(m.A, np, np, m.inverse)) return false;
    std::memcpy(m.e, m.v, np * sizeof(float));
    solve_transposed(m.A, np, np, m.inverse, m.e);
    solve_upper(m.A, np, np, m.inverse, m.e);
    for (std::size_t f = 0; f < m.kp; f += W) store(m.u + f, load(m.z + f) * dots(T + f * np, np, m.e, np));
    end_row(P, row, m, m.u);
    if (with_bias) P.bias[row] = dot(m.root, m.e, np) / P.reg[row];
    P.objective[row] = dot(m.v, m.e, np);
    return std::isfinite(P.objective[row]);
}

}  // namespace eckart
