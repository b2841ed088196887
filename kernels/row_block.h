// A row improved, not solved: a few steps from where it stood, at n k work a step in place of n k^2 in all.
//
// A row is walked in chunks whose gathered factors fit in the second-level cache. One chunk holds most rows, and is
// then gathered once for all steps.
#include "rows.h"

namespace eckart {

// Gathers chunk c of a row, padded with zero rows, and returns its padded length. Nothing to do where the row has one
// chunk and it is there already.
template <class Kind, bool with_bias>
inline std::size_t gather_chunk(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t c, bool there,
                                Scratch& m) {
    const std::size_t n = std::min(m.most, P.length(row) - c * m.most), np = padded(n);
    if (there && P.length(row) <= m.most) return np;
    gather(P, P.R.indptr[row] + static_cast<std::int64_t>(c * m.most), P.R.indptr[row + 1], n, m);
    std::memset(m.Y + n * m.kp, 0, (np - n) * m.kp * sizeof(float));
    for (std::size_t t = n; t < np; ++t) m.root[t] = m.v[t] = 0;
    return np;
}

// u and D of the row.
template <class Kind, bool with_bias>
inline void begin_iteration(const Problem<Kind, with_bias>& P, std::int64_t row, Scratch& m) {
    begin_row(P, row, m);
    const float* x = P.X + row * P.k;
    for (std::size_t f = 0; f < P.k; ++f) m.u[f] = P.prior ? x[f] - m.p[f] : x[f];
}

// e = v~ - b r - Y~ u of a gathered chunk.
inline void residual(float bias, std::size_t np, const Scratch& m, float* e) {
    for (std::size_t t = 0; t < np; t += W)
        store(e + t, load(m.v + t) - bias * load(m.root + t) - dots(m.Y + t * m.kp, m.kp, m.u, m.kp));
}

// l_u b^2 + u^T D u
template <class Kind, bool with_bias>
inline double penalty(const Problem<Kind, with_bias>& P, std::int64_t row, const Scratch& m) {
    double total = with_bias ? static_cast<double>(P.reg[row]) * P.bias[row] * P.bias[row] : 0;
    for (std::size_t f = 0; f < P.k; ++f) total += static_cast<double>(m.D[f]) * m.u[f] * m.u[f];
    return total;
}

// Conjugate gradients with a diagonal preconditioner. In the basis where the shared term is diagonal the entries' own
// term is nearly so: its diagonal is taken to be sum_t w_t times the columns' mean square, `mean_square` (k).
template <class Kind, bool with_bias>
inline bool solve_cg(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t steps, const float* mean_square,
                     Scratch& m) {
    begin_iteration(P, row, m);
    const std::size_t kp = m.kp, chunks = (P.length(row) + m.most - 1) / m.most;
    float *r = m.g, *p = m.s, *q = m.z, *inverse = m.inverse;
    double total = penalty(P, row, m);
    float weight = 0, r_b = 0;
    std::memset(r, 0, kp * sizeof(float));
    for (std::size_t c = 0; c < chunks; ++c) {
        const std::size_t np = gather_chunk(P, row, c, false, m);
        residual(with_bias ? P.bias[row] : 0, np, m, m.e);
        total += dot(m.e, m.e, np);
        weight += dot(m.root, m.root, np);
        if (with_bias) r_b += dot(m.root, m.e, np);
        add_rows(m.Y, kp, m.e, np, kp, r);
    }
    const float inverse_b = with_bias ? 1 / (P.reg[row] + weight) : 0;
    if (with_bias) r_b -= P.reg[row] * P.bias[row];
    for (std::size_t f = 0; f < kp; ++f) {
        inverse[f] = f < P.k ? 1 / (m.D[f] + weight * mean_square[f]) : 0;
        r[f] -= m.D[f] * m.u[f];
        p[f] = inverse[f] * r[f];
    }
    float p_b = inverse_b * r_b;
    double rz = static_cast<double>(dot(r, p, kp)) + r_b * p_b;
    const double least = 1e-12 * rz;  // below it, what is left of r is rounding
    for (std::size_t step = 0; step < steps && rz > least; ++step) {
        for (std::size_t f = 0; f < kp; f += W) store(q + f, load(m.D + f) * load(p + f));
        float q_b = P.reg[row] * p_b;
        for (std::size_t c = 0; c < chunks; ++c) {
            const std::size_t np = gather_chunk(P, row, c, true, m);
            for (std::size_t t = 0; t < np; t += W) {  // W rows at a time, so that the second look finds them in L1
                store(m.e + t, dots(m.Y + t * kp, kp, p, kp) + p_b * load(m.root + t));
                add_rows(m.Y + t * kp, kp, m.e + t, W, kp, q);
            }
            if (with_bias) q_b += dot(m.root, m.e, np);
        }
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
    begin_iteration(P, row, m);
    const std::size_t n = P.length(row), kp = m.kp, chunks = (n + m.most - 1) / m.most;
    m.residual.resize(chunks * m.most);
    float* e = m.residual.data();
    float weight = 0;
    for (std::size_t c = 0; c < chunks; ++c) {
        const std::size_t np = gather_chunk(P, row, c, false, m);
        residual(with_bias ? P.bias[row] : 0, np, m, e + c * m.most);
        weight += dot(m.root, m.root, np);
    }
    for (std::size_t sweep = 0; sweep < sweeps; ++sweep) {
        if (with_bias) {
            float along = 0;
            for (std::size_t c = 0; c < chunks; ++c)
                along += dot(m.root, e + c * m.most, gather_chunk(P, row, c, true, m));
            const float step = (along - P.reg[row] * P.bias[row]) / (weight + P.reg[row]);
            P.bias[row] += step;
            for (std::size_t c = 0; c < chunks; ++c)
                axpy(-step, m.root, e + c * m.most, gather_chunk(P, row, c, true, m));
        }
        for (std::size_t from = 0; from < kp; from += width) {
            const std::size_t d = std::min(width, kp - from);
            std::memset(m.A, 0, d * d * sizeof(float));
            std::memset(m.g, 0, d * sizeof(float));
            for (std::size_t c = 0; c < chunks; ++c) {
                const std::size_t np = gather_chunk(P, row, c, true, m);
                rank_update<Update::add>(m.A, d, m.Y + from, kp, np, d);
                add_rows(m.Y + from, kp, e + c * m.most, np, d, m.g);
            }
            for (std::size_t f = 0; f < d; ++f) {
                m.A[f * d + f] += m.D[from + f];
                m.g[f] -= m.D[from + f] * m.u[from + f];
            }
            if (!cholesky(m.A, d, d, m.inverse)) return false;
            solve_transposed(m.A, d, d, m.inverse, m.g);
            solve_upper(m.A, d, d, m.inverse, m.g);
            axpy(1, m.g, m.u + from, d);
            for (std::size_t c = 0; c < chunks; ++c) {
                const std::size_t np = gather_chunk(P, row, c, true, m);
                float* here = e + c * m.most;
                for (std::size_t t = 0; t < np; t += W)
                    store(here + t, load(here + t) - dots(m.Y + t * kp + from, kp, m.g, d));
            }
        }
    }
    end_row(P, row, m, m.u);
    P.objective[row] = penalty(P, row, m);
    for (std::size_t c = 0; c < chunks; ++c)
        P.objective[row] += dot(e + c * m.most, e + c * m.most, padded(std::min(m.most, n - c * m.most)));
    return std::isfinite(P.objective[row]);
}

}  // namespace eckart
