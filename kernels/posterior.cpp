// Draws from the Gaussian posteriors of Bayesian matrix factorization, given everything else of a Gibbs sweep.
//
// Rows (Salakhutdinov & Mnih 2008, eq. 11 to 13): row u has entries v_t in columns i_t, noise of precision alpha, and
// the prior x ~ N(p_u, L^-1). With A = L + alpha sum_t y_t y_t^T = U^T U and what the prior mean leaves unexplained,
//     g = alpha sum_t (v_t - p_u . y_t) y_t,      x = p_u + U^-1 (U^-T g + e),      e ~ N(0, I),
// is a draw, since U^-1 e has covariance A^-1; with e = 0 it is the posterior's mean.
//
// Spread: the same A says how much of a score is unknown, given the sample: Var(x . y) = y^T A^-1 y = |U^-T y|^2.
//
// Link (Simm et al. 2015, with one coefficient vector after the other): rows x_u = B^T f_u + residual, residual ~
// N(0, L^-1), f_u a sparse row of F, b_j ~ N(0, (lambda L)^-1). Given the others, with E = X - F B and d = sum_u
// f_uj^2,
//     b_j ~ N( (sum_u f_uj e_u + d b_j) / (d + lambda),  L^-1 / (d + lambda) ),
// so the factors couple through the noise alone: drawn beforehand, it leaves every column of B to itself, and threads
// take blocks of columns. A pass costs two products with F; no matrix of items x items is made.
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "row_exact.h"

namespace eckart {

namespace {

// Entries of equal precision: the sums of an explicit row (row_exact.h), each scaled by alpha.
struct Noisy {
    float alpha;
    float weight(float) const { return alpha; }
    float target(float value, std::size_t) const { return value; }
};

// A row's U, upper triangular, and g; false where A is not positive definite.
bool factorized(const Problem<Noisy, false>& P, std::int64_t row, const float* precision, Scratch& m) {
    std::memset(m.A, 0, m.kp * m.kp * sizeof(float));  // of an empty row nothing is accumulated
    if (P.prior) std::memcpy(m.p, P.prior + row * P.k, P.k * sizeof(float));
    accumulate(P, P.R.indptr[row], P.R.indptr[row + 1], m);
    for (std::size_t i = 0; i < P.k; ++i)
        for (std::size_t j = i / W * W; j < P.k; ++j) m.A[i * m.kp + j] += precision[i * P.k + j];
    for (std::size_t i = P.k; i < m.kp; ++i) m.A[i * m.kp + i] = 1;
    return cholesky(m.A, m.kp, m.kp, m.inverse);
}

// body(row, scratch) of every row; the lowest for which it is false, or -1.
template <class Body>
std::int64_t for_rows(const Sparse& R, std::size_t k, std::size_t threads, const Body& body) {
    // A factorization costs k / 3 entries by flops, and runs slower.
    const RowTasks tasks(R.indptr, R.rows, threads, [&](std::size_t n) { return static_cast<double>(n + k / 2); });
    threads = std::max<std::size_t>(1, std::min(threads, tasks.count()));
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (std::size_t t = 0; t < threads; ++t) scratch.emplace_back(k);
    FirstFailure failed;
    parallel_for(threads, tasks.count(), [&](std::size_t task, std::size_t worker) {
        for (std::size_t i = tasks.start[task]; i < tasks.start[task + 1]; ++i)
            if (!body(tasks.order[i], scratch[worker])) failed.add(tasks.order[i]);
    });
    return failed.row_or_none();
}

}  // namespace

std::int64_t posterior_spread(const Sparse& R, const float* Y, std::size_t k, float alpha, const float* precision,
                              const Sparse& targets, float* spread, std::size_t threads) {
    const Problem<Noisy, false> P{R, {alpha}, Y, k, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    return for_rows(R, k, threads, [&](std::int64_t row, Scratch& m) {
        if (targets.indptr[row] == targets.indptr[row + 1]) return true;
        if (!factorized(P, row, precision, m)) return false;
        for (std::int64_t t = targets.indptr[row]; t < targets.indptr[row + 1]; ++t) {
            std::fill(m.z, m.z + m.kp, 0.f);
            std::memcpy(m.z, Y + static_cast<std::size_t>(targets.indices[t]) * k, k * sizeof(float));
            solve_transposed(m.A, m.kp, m.kp, m.inverse, m.z);
            spread[t] = dot(m.z, m.z, m.kp);
        }
        return true;
    });
}

std::int64_t posterior_rows(const Sparse& R, const float* Y, std::size_t k, float alpha, const float* precision,
                            const float* prior, const float* noise, float* X, std::size_t threads) {
    const Problem<Noisy, false> P{R, {alpha}, Y, k, nullptr, nullptr, prior, X, nullptr, nullptr};
    return for_rows(R, k, threads, [&](std::int64_t row, Scratch& m) {
        if (!factorized(P, row, precision, m)) return false;
        solve_transposed(m.A, m.kp, m.kp, m.inverse, m.g);
        for (std::size_t f = 0; noise && f < k; ++f) m.g[f] += noise[row * k + f];
        solve_upper(m.A, m.kp, m.kp, m.inverse, m.g);
        end_row(P, row, m, m.g);
        return std::all_of(X + row * k, X + (row + 1) * k, [](float x) { return std::isfinite(x); });
    });
}

void sample_link(const Sparse& by_column, float lambda, const float* noise, std::size_t k, float* E, float* B,
                 std::size_t threads) {
    const std::size_t rows = by_column.columns;
    parallel_for(threads, (k + W - 1) / W, [&](std::size_t block, std::size_t) {
        const std::size_t first = block * W, bytes = std::min(W, k - first) * sizeof(float);
        std::vector<float> e(rows * W, 0.f);  // the block's columns of E, side by side: each row is one vector
        for (std::size_t u = 0; u < rows; ++u) std::memcpy(&e[u * W], E + u * k + first, bytes);
        for (std::size_t j = 0; j < by_column.rows; ++j) {
            const std::int64_t begin = by_column.indptr[j], end = by_column.indptr[j + 1];
            float b[W] = {}, z[W] = {};
            std::memcpy(b, B + j * k + first, bytes);
            std::memcpy(z, noise + j * k + first, bytes);
            vec total{};
            float d = 0;
            for (std::int64_t t = begin; t < end; ++t) {
                const float f = by_column.values[t];
                total += f * load(&e[static_cast<std::size_t>(by_column.indices[t]) * W]);
                d += f * f;
            }
            const vec old = load(b), fresh = (total + d * old) * (1 / (d + lambda)) + load(z) / std::sqrt(d + lambda);
            const vec change = fresh - old;
            for (std::int64_t t = begin; t < end; ++t) {
                float* to = &e[static_cast<std::size_t>(by_column.indices[t]) * W];
                store(to, load(to) - by_column.values[t] * change);
            }
            store(b, fresh);
            std::memcpy(B + j * k + first, b, bytes);
        }
        for (std::size_t u = 0; u < rows; ++u) std::memcpy(E + u * k + first, &e[u * W], bytes);
    });
}

}  // namespace eckart
