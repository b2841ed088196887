// Users of logistic matrix factorization, given the items: each row minimises, by a fixed number of steps,
//
//     sum_t log(1 + exp(-s_t)) + q sum over all columns i of log(1 + exp(s_i)) + reg / 2 |x|^2,
//     s_i = c_i + x . y_i,
//
// q being the row's weight of a cell. The curvature of log(1 + exp(s)) is at most 1/4, so with the Gramian G = Y'Y
//
//     A = reg I + (q G + sum_t y_t y_t') / 4,     x += A^-1 g,     g = sum_t (1 - p_t) y_t - q sum_i p_i y_i - reg x
//
// never makes the objective larger (Boehning & Lindsay 1988). A is factorized once a row; the steps carry Nesterov's
// momentum j / (j + 3). A step costs 4 m k flops and m exponentials.
#include <cmath>
#include <vector>

#include "parallel.h"
#include "row_exact.h"

namespace eckart {

std::int64_t logistic_rows(const Sparse& R, const float* Y, std::size_t k, const float* column_bias, const float* cell,
                           const float* reg, std::size_t steps, float* X, std::size_t threads) {
    const std::size_t kp = padded(k), m = R.columns;
    std::vector<float> items(m * kp), G(kp * kp);
    for (std::size_t i = 0; i < m; ++i) std::memcpy(&items[i * kp], Y + i * k, k * sizeof(float));
    constexpr std::size_t panel = 256;  // sums of so many terms at a time lose little in float32
    for (std::size_t i = 0; i < m; i += panel)
        rank_update<Update::add>(G.data(), kp, &items[i * kp], kp, std::min(panel, m - i), kp);
    FirstFailure failed;
    parallel_for(threads, R.rows, [&](std::size_t row, std::size_t) {
        const std::int64_t begin = R.indptr[row], end = R.indptr[row + 1];
        float* out = X + row * k;
        std::fill(out, out + k, 0.f);
        if (begin == end) return;  // no entries: no cells either
        std::vector<float> own, A(kp * kp), inverse(kp), x(kp), last(kp), at(kp), g(kp), part(kp), p(m);
        for (std::int64_t t = begin; t < end; ++t) {
            const float* y = &items[static_cast<std::size_t>(R.indices[t]) * kp];
            own.insert(own.end(), y, y + kp);
        }
        rank_update<Update::set>(A.data(), kp, own.data(), kp, static_cast<std::size_t>(end - begin), kp);
        for (std::size_t f = 0; f < kp * kp; ++f) A[f] = 0.25f * (A[f] + cell[row] * G[f]);
        for (std::size_t f = 0; f < kp; ++f) A[f * kp + f] += f < k ? reg[row] : 1.f;
        bool sound = cholesky(A.data(), kp, kp, inverse.data());
        for (std::size_t j = 0; sound && j < steps; ++j) {
            const float momentum = static_cast<float>(j) / static_cast<float>(j + 3);
            for (std::size_t f = 0; f < kp; ++f) at[f] = x[f] + momentum * (x[f] - last[f]);
            for (std::size_t i = 0; i < m; ++i)
                p[i] = 1 / (1 + std::exp(-(column_bias[i] + dot(&items[i * kp], at.data(), kp))));
            for (std::size_t f = 0; f < kp; ++f) g[f] = -reg[row] * at[f];
            for (std::int64_t t = begin; t < end; ++t) {
                const std::size_t i = static_cast<std::size_t>(R.indices[t]);
                axpy(1 - p[i], &items[i * kp], g.data(), kp);
            }
            for (std::size_t i = 0; i < m; i += panel) {
                std::fill(part.begin(), part.end(), 0.f);
                add_rows(&items[i * kp], kp, &p[i], std::min(panel, m - i), kp, part.data());
                axpy(-cell[row], part.data(), g.data(), kp);
            }
            solve_transposed(A.data(), kp, kp, inverse.data(), g.data());
            solve_upper(A.data(), kp, kp, inverse.data(), g.data());
            last = x;
            for (std::size_t f = 0; f < kp; ++f) x[f] = at[f] + g[f];
        }
        std::copy_n(x.begin(), k, out);
        if (!sound || !std::all_of(out, out + k, [](float f) { return std::isfinite(f); }))
            failed.add(static_cast<std::int64_t>(row));
    });
    return failed.row_or_none();
}

}  // namespace eckart
