// A row improved by block coordinate descent (iALS++, Rendle et al. 2021): each block of factors is solved exactly, the
// others being held, at n k b work in place of n k^2.
//
// A row is walked in chunks whose gathered factors fit in the second-level cache. One chunk holds most rows, and is
// then gathered once for all looks.
#pragma once

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
    pad(n, m);
    return np;
}

template <class Kind, bool with_bias>
inline bool solve_blocks(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t sweeps, Scratch& m) {
    constexpr std::size_t width = 64;
    begin_iteration(P, row, m.u, m);
    const std::size_t n = P.length(row), kp = m.kp, chunks = (n + m.most - 1) / m.most;
    m.residual.resize(chunks * m.most);
    float* e = m.residual.data();
    float weight = 0;
    for (std::size_t c = 0; c < chunks; ++c) {
        const std::size_t np = gather_chunk(P, row, c, false, m);
        for (std::size_t t = 0; t < np; t += W)
            store(e + c * m.most + t, residual(with_bias ? P.bias[row] : 0, m.u, t, m));
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
    P.objective[row] = penalty(P, row, m.u, m);
    for (std::size_t c = 0; c < chunks; ++c)
        P.objective[row] += dot(e + c * m.most, e + c * m.most, padded(std::min(m.most, n - c * m.most)));
    return std::isfinite(P.objective[row]);
}

}  // namespace eckart
