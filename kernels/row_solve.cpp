// The ALS half-step: every row's factor, given the factors Y of the columns. Rows are independent.
//
// Explicit (Zhou et al. 2008, with biases solved jointly): for row u with entries r_t in columns i_t,
//     min over x, b   sum_t (v_t - b - x . y_t)^2 + l_u (|x|^2 + b^2),      v_t = r_t - mean - c_{i_t}
// whose normal equations, A = sum_t y_t y_t^T + l_u I, s = sum_t y_t, g = sum_t v_t y_t, are
//     [ A    s       ] [x]   [ g         ]
//     [ s^T  n + l_u ] [b] = [ sum_t v_t ].
// With A = U^T U, z = U^-T g, q = U^-T s:  b = (sum v - z . q) / (n + l_u - q . q),  x = U^-1 (z - b q).
//
// Implicit (Hu et al. 2008; Rendle et al. 2021): with weights w_t = alpha r_t on the entries and every cell of
// the row pulled to 0 with the weight that `gram` = a0 Y^T Y carries,
//     min over x   sum_t w_t (1 - x . y_t)^2 + x^T gram x + l_u |x|^2,
//     (gram + sum_t w_t y_t y_t^T + l_u I) x = sum_t w_t y_t.
//
// At the optimum of a ridge system with matrix A and right side g the value is (constant - g . x), so the
// objective comes for free: a backward stable solve gets it to about k roundings, whatever the condition.
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "dense.h"
#include "kernels.h"
#include "parallel.h"

namespace eckart {
namespace {

// The gathered rows of a panel and the tile being summed must share the first-level cache (32 KB).
constexpr std::size_t panel_bytes = 16 * 1024;
// A gathered row is k / 16 cache lines from memory (~90 ns away) and costs ~k^2 / 2 fused operations once
// there (~60 ns at k = 64): four rows ahead hides it.
constexpr std::size_t ahead = 4;

// One worker's scratch: everything a row needs, aligned to a cache line, allocated once.
struct Scratch {
    std::size_t kp, panel;
    std::unique_ptr<float[], void (*)(float*)> memory;
    float *A, *Y, *g, *s, *inverse, *v, *ones;

    explicit Scratch(std::size_t k)
        : kp(padded(k)),
          panel(std::max<std::size_t>(16, panel_bytes / (kp * sizeof(float)))),
          memory(allocate(kp * kp + panel * kp + 3 * kp + 2 * panel),
                 [](float* p) { ::operator delete[](p, alignment); }) {
        A = memory.get();
        Y = A + kp * kp;
        g = Y + panel * kp;
        s = g + kp;
        inverse = s + kp;
        v = inverse + kp;
        ones = v + panel;
        std::fill(ones, ones + panel, 1.f);
    }

    static constexpr std::align_val_t alignment{64};
    // Zeroed: the columns between k and kp stay zero for good.
    static float* allocate(std::size_t floats) {
        auto* p = static_cast<float*>(::operator new[](floats * sizeof(float), alignment));
        std::memset(p, 0, floats * sizeof(float));
        return p;
    }
};

void prefetch_row(const float* y, std::size_t k) {
    for (std::size_t j = 0; j < k; j += 16) __builtin_prefetch(y + j);
}

// out[0, k) = scale * y[0, k); out is padded, y is not.
inline void copy_scaled(const float* y, float scale, float* out, std::size_t k) {
    std::size_t j = 0;
    for (; j + W <= k; j += W) store(out + j, load(y + j) * scale);
    for (; j < k; ++j) out[j] = y[j] * scale;
}

// Runs `solve(row, scratch) -> bool` over the rows of R and returns the first row where it said no, or -1.
template <class Solve>
std::int64_t over_rows(const Sparse& R, std::size_t k, std::size_t threads, const Solve& solve) {
    // By flops a Cholesky factorization costs k / 3 entries (k^3 / 3 against k^2 each), and it runs slower. This only
    // balances tasks, so it need not be exact.
    const RowTasks tasks(R.indptr, R.rows, threads, 0.5 * static_cast<double>(k));
    threads = std::max<std::size_t>(1, std::min(threads, tasks.count()));
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (std::size_t t = 0; t < threads; ++t) scratch.emplace_back(k);
    std::atomic<std::int64_t> failed{INT64_MAX};
    parallel_for(threads, tasks.count(), [&](std::size_t task, std::size_t worker) {
        for (std::size_t i = tasks.start[task]; i < tasks.start[task + 1]; ++i) {
            if (solve(tasks.order[i], scratch[worker])) continue;
            std::int64_t least = failed.load();
            while (tasks.order[i] < least && !failed.compare_exchange_weak(least, tasks.order[i])) {
            }
        }
    });
    return failed == INT64_MAX ? -1 : failed.load();
}

}  // namespace

std::int64_t explicit_rows(const Sparse& R, const float* Y, std::size_t k, const float* column_bias, float mean,
                           const float* reg, float* X, float* row_bias, double* objective, std::size_t threads) {
    return over_rows(R, k, threads, [&](std::int64_t row, Scratch& m) {
        const std::int64_t begin = R.indptr[row], end = R.indptr[row + 1];
        float* x = X + row * k;
        if (begin == end) {
            std::memset(x, 0, k * sizeof(float));
            row_bias[row] = 0;
            objective[row] = 0;
            return true;
        }
        std::memset(m.A, 0, m.kp * m.kp * sizeof(float));
        std::memset(m.g, 0, m.kp * sizeof(float));
        std::memset(m.s, 0, m.kp * sizeof(float));
        double sum_v = 0, sum_vv = 0;
        for (std::int64_t from = begin; from < end; from += m.panel) {
            const std::size_t n = std::min<std::int64_t>(m.panel, end - from);
            for (std::size_t t = 0; t < n; ++t) {
                if (from + static_cast<std::int64_t>(t + ahead) < end)
                    prefetch_row(Y + R.indices[from + t + ahead] * k, k);
                const std::size_t column = R.indices[from + t];
                float* y = m.Y + t * m.kp;
                copy_scaled(Y + column * k, 1, y, k);
                const float v = R.values[from + t] - mean - column_bias[column];
                sum_v += v;
                sum_vv += static_cast<double>(v) * v;
                m.v[t] = v;
            }
            add_rows(m.Y, m.kp, m.v, n, m.kp, m.g);
            add_rows(m.Y, m.kp, m.ones, n, m.kp, m.s);
            rank_update<false>(m.A, m.kp, m.Y, m.kp, n, m.kp);
        }
        for (std::size_t p = 0; p < m.kp; ++p) m.A[p * m.kp + p] += reg[row];
        if (!cholesky(m.A, m.kp, m.kp, m.inverse)) return false;
        float* z = m.Y;  // the panel is done with
        std::memcpy(z, m.g, m.kp * sizeof(float));
        solve_transposed(m.A, m.kp, m.kp, m.inverse, z);
        solve_transposed(m.A, m.kp, m.kp, m.inverse, m.s);
        const double pivot = static_cast<double>(end - begin) + reg[row] - dot(m.s, m.s, m.kp);
        const float bias = static_cast<float>((sum_v - dot(z, m.s, m.kp)) / pivot);
        axpy(-bias, m.s, z, m.kp);
        solve_upper(m.A, m.kp, m.kp, m.inverse, z);
        std::memcpy(x, z, k * sizeof(float));
        row_bias[row] = bias;
        objective[row] = sum_vv - bias * sum_v - dot(m.g, z, m.kp);
        return pivot > 0 && std::isfinite(objective[row]);
    });
}

std::int64_t implicit_rows(const Sparse& R, const float* Y, std::size_t k, const float* gram, float alpha,
                           const float* reg, float* X, double* objective, std::size_t threads) {
    const std::size_t kp = padded(k);
    std::vector<float> dense(kp * kp, 0.f);  // gram, padded: copied once a row instead of widened once a row
    for (std::size_t i = 0; i < k; ++i) std::memcpy(&dense[i * kp], gram + i * k, k * sizeof(float));
    return over_rows(R, k, threads, [&](std::int64_t row, Scratch& m) {
        const std::int64_t begin = R.indptr[row], end = R.indptr[row + 1];
        float* x = X + row * k;
        if (begin == end) {
            std::memset(x, 0, k * sizeof(float));
            objective[row] = 0;
            return true;
        }
        std::memcpy(m.A, dense.data(), kp * kp * sizeof(float));
        std::memset(m.g, 0, kp * sizeof(float));
        double sum_w = 0;
        for (std::int64_t from = begin; from < end; from += m.panel) {
            const std::size_t n = std::min<std::int64_t>(m.panel, end - from);
            for (std::size_t t = 0; t < n; ++t) {
                if (from + static_cast<std::int64_t>(t + ahead) < end)
                    prefetch_row(Y + R.indices[from + t + ahead] * k, k);
                const float w = alpha * R.values[from + t];
                const float root = std::sqrt(w);  // sqrt(w) y, so that the update is a plain Y^T Y
                float* y = m.Y + t * kp;
                copy_scaled(Y + static_cast<std::size_t>(R.indices[from + t]) * k, root, y, k);
                sum_w += w;
                m.v[t] = root;
            }
            add_rows(m.Y, kp, m.v, n, kp, m.g);
            rank_update<false>(m.A, kp, m.Y, kp, n, kp);
        }
        for (std::size_t p = 0; p < kp; ++p) m.A[p * kp + p] += reg[row];
        if (!cholesky(m.A, kp, kp, m.inverse)) return false;
        std::memcpy(m.s, m.g, kp * sizeof(float));
        solve_transposed(m.A, kp, kp, m.inverse, m.s);
        solve_upper(m.A, kp, kp, m.inverse, m.s);
        std::memcpy(x, m.s, k * sizeof(float));
        objective[row] = sum_w - dot(m.g, m.s, kp);
        return std::isfinite(objective[row]);
    });
}

void gram(const float* Y, std::size_t rows, std::size_t k, float* G, std::size_t threads) {
    // Blocks, and the order in which they are added, depend on the sizes alone: 64 at most, fewer where they would
    // take more than 128 MB.
    const std::size_t kp = padded(k), most = std::clamp<std::size_t>((std::size_t{1} << 25) / (kp * kp), 4, 64);
    const std::size_t block = std::max<std::size_t>(1024, (rows + most - 1) / most);
    const std::size_t blocks = (rows + block - 1) / block;
    threads = std::max<std::size_t>(1, std::min(threads, blocks));
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (std::size_t t = 0; t < threads; ++t) scratch.emplace_back(k);
    std::vector<float> parts(blocks * kp * kp, 0.f);
    parallel_for(threads, blocks, [&](std::size_t b, std::size_t worker) {
        Scratch& m = scratch[worker];
        const std::size_t end = std::min(rows, (b + 1) * block);
        for (std::size_t from = b * block; from < end; from += m.panel) {
            const std::size_t n = std::min(m.panel, end - from);
            for (std::size_t t = 0; t < n; ++t) copy_scaled(Y + (from + t) * k, 1, m.Y + t * kp, k);
            rank_update<false>(&parts[b * kp * kp], kp, m.Y, kp, n, kp);
        }
    });
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = i; j < k; ++j) {
            double total = 0;
            for (std::size_t b = 0; b < blocks; ++b) total += parts[b * kp * kp + i * kp + j];
            G[i * k + j] = G[j * k + i] = static_cast<float>(total);
        }
}

}  // namespace eckart
