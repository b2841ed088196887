// The ALS half-step: every row's factors, given the factors Y of the columns. Rows are independent; the problem of one
// is stated in rows.h, the ways to solve it in row_exact.h and row_iterative.h. This file decides who takes which row.
#include <tuple>
#include <vector>

#include "parallel.h"
#include "row_block.h"
#include "row_cg.h"
#include "row_exact.h"

namespace eckart {
namespace {

// Rows of more entries than this are summed in chunks over all threads: an item that everybody has rated must not keep
// one thread busy when the others are done. By the sizes alone, so that threads do not change the sums.
constexpr std::size_t long_row = 32768, chunk_entries = 8192, most_chunks = 64;
// Long rows that are improved by conjugate gradients form so many groups a thread: more even out the threads' work,
// fewer let more rows share a block of factors.
constexpr double groups_per_thread = 4;

// Nanoseconds that a row of n entries takes by each way, as benchmarks/row_solve.py fits them (AVX-512, one thread).
// Only ratios matter, and they hold within a factor of about 1.5 on AVX2.
struct Costs {
    double k, kp;
    std::size_t most;
    explicit Costs(std::size_t rank, std::size_t most)
        : k(static_cast<double>(rank)), kp(static_cast<double>(padded(rank))), most(most) {}

    double factorization(double n) const { return 0.006 * n * n * n + 38 * n; }
    double primal(std::size_t n) const {
        return static_cast<double>(n) * (0.0105 * kp * kp + 0.25 * kp) + factorization(kp);
    }
    double dual(std::size_t n) const {
        const auto np = static_cast<double>(padded(n));
        return 0.0105 * np * np * kp + 0.8 * np * kp + factorization(np);
    }
    bool has_dual(std::size_t n) const { return n < k && dual(n) < primal(n); }
    double exact(std::size_t n) const { return has_dual(n) ? dual(n) : primal(n); }
    // The iterative ways gather a row once if it fits in the scratch, and else for every look.
    double iterative(std::size_t n, Method method, std::size_t steps) const {
        const double cells = static_cast<double>(padded(n)) * kp, s = static_cast<double>(steps);
        const double looks = method == Method::cg ? 1 + s : 1 + 2 * s * kp / 64;
        const double gathers = n > most ? looks : 1;
        if (method == Method::cg) return cells * ((n > most ? 0.15 : 0.25) * gathers + 0.085 * looks) + 9 * kp;
        if (method == Method::block) return cells * (0.25 * gathers + 1.2 * s) + s * kp / 64 * factorization(64);
        return HUGE_VAL;
    }
    bool improves(std::size_t n, Method method, std::size_t steps) const {
        return iterative(n, method, steps) < exact(n);
    }
    bool in_chunks(std::size_t n, Method method, std::size_t steps) const {
        return n > long_row && !improves(n, method, steps);
    }
    bool together(std::size_t n, Method method, std::size_t steps) const {
        return method == Method::cg && n > most && improves(n, method, steps);
    }
    double least(std::size_t n, Method method, std::size_t steps) const {
        if (method == Method::primal) return primal(n);
        if (method == Method::dual) return n < k ? dual(n) : primal(n);
        return std::min(exact(n), iterative(n, method, steps));
    }
};

template <class Problem>
bool empty_row(const Problem& P, std::int64_t row) {
    for (std::size_t f = 0; f < P.k; ++f) P.X[row * P.k + f] = P.prior ? P.prior[row * P.k + f] : 0;
    if (P.bias) P.bias[row] = 0;
    P.objective[row] = 0;
    return true;
}

// One long row, primal: chunks are summed by whoever is free, then added in their order.
template <class Problem>
bool solve_long(const Problem& P, std::int64_t row, std::vector<Scratch>& scratch) {
    const std::size_t n = P.length(row), kp = scratch[0].kp;
    const std::size_t chunk = std::max(chunk_entries, (n + most_chunks - 1) / most_chunks);
    const std::size_t chunks = (n + chunk - 1) / chunk, size = kp * kp + 2 * kp;
    std::vector<float> parts(chunks * size);
    std::vector<Sums> sums(chunks);
    for (Scratch& m : scratch) begin_row(P, row, m);
    parallel_for(scratch.size(), chunks, [&](std::size_t c, std::size_t worker) {
        Scratch& m = scratch[worker];
        const std::int64_t from = P.R.indptr[row] + static_cast<std::int64_t>(c * chunk);
        const std::int64_t to = std::min<std::int64_t>(P.R.indptr[row + 1], from + static_cast<std::int64_t>(chunk));
        sums[c] = accumulate(P, from, to, m);
        float* part = &parts[c * size];
        std::memcpy(part, m.A, kp * kp * sizeof(float));
        std::memcpy(part + kp * kp, m.g, kp * sizeof(float));
        std::memcpy(part + kp * kp + kp, m.s, kp * sizeof(float));
    });
    Scratch& m = scratch[0];
    std::memcpy(m.A, parts.data(), kp * kp * sizeof(float));
    std::memcpy(m.g, &parts[kp * kp], kp * sizeof(float));
    std::memcpy(m.s, &parts[kp * kp + kp], kp * sizeof(float));
    for (std::size_t c = 1; c < chunks; ++c) {
        axpy(1, &parts[c * size], m.A, kp * kp);
        axpy(1, &parts[c * size + kp * kp], m.g, kp);
        axpy(1, &parts[c * size + kp * kp + kp], m.s, kp);
        sums[0].vv += sums[c].vv;
        sums[0].rv += sums[c].rv;
        sums[0].rr += sums[c].rr;
    }
    return solve_normal(P, row, sums[0], m);
}

// Rows in `count` groups, or fewer, of about equally many entries.
template <class Problem>
std::vector<std::vector<std::int64_t>> grouped(const Problem& P, const std::vector<std::int64_t>& rows, double count) {
    double entries = 0, here = HUGE_VAL;
    for (const std::int64_t row : rows) entries += static_cast<double>(P.length(row));
    std::vector<std::vector<std::int64_t>> groups;
    for (const std::int64_t row : rows) {
        if (here >= entries / count) {
            groups.emplace_back();
            here = 0;
        }
        groups.back().push_back(row);
        here += static_cast<double>(P.length(row));
    }
    return groups;
}

std::vector<float> column_mean_squares(const float* Y, std::size_t rows, std::size_t k) {
    std::vector<double> total(k);
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t f = 0; f < k; ++f) total[f] += static_cast<double>(Y[i * k + f]) * Y[i * k + f];
    std::vector<float> mean(k);
    for (std::size_t f = 0; f < k; ++f) mean[f] = static_cast<float>(total[f] / static_cast<double>(rows));
    return mean;
}

template <class Problem>
std::int64_t solve_rows(const Problem& P, const RowOptions& options) {
    const auto [method, steps, threads] =
        std::tuple(options.method, options.steps, std::max<std::size_t>(1, std::min(options.threads, P.R.rows)));
    std::vector<Scratch> scratch;
    scratch.reserve(threads);
    for (std::size_t t = 0; t < threads; ++t) scratch.emplace_back(P.k);
    const Costs costs(P.k, Scratch::most_rows(P.k));
    std::vector<float> mean_square;
    if (method == Method::cg) mean_square = column_mean_squares(P.Y, P.R.columns, P.k);

    const auto solve = [&](std::int64_t row, Scratch& m) {
        const std::size_t n = P.length(row);
        if (n == 0) return empty_row(P, row);
        if (costs.improves(n, method, steps))
            return method == Method::cg ? solve_cg(P, row, steps, mean_square.data(), m)
                                        : solve_blocks(P, row, steps, m);
        const bool dual = method == Method::dual ? n < P.k : method != Method::primal && costs.has_dual(n);
        return dual ? solve_dual(P, row, m) : solve_primal(P, row, m);
    };

    FirstFailure failed;
    std::vector<std::int64_t> together;
    for (std::int64_t row = 0; row < static_cast<std::int64_t>(P.R.rows); ++row) {
        const std::size_t n = P.length(row);
        if (costs.in_chunks(n, method, steps) && !solve_long(P, row, scratch)) failed.add(row);
        if (costs.together(n, method, steps)) together.push_back(row);
    }
    const auto groups = grouped(P, together, groups_per_thread * static_cast<double>(threads));
    parallel_for(threads, groups.size(), [&](std::size_t g, std::size_t worker) {
        solve_cg_together(P, groups[g], steps, mean_square.data(), scratch[worker],
                          [&](std::int64_t row) { failed.add(row); });
    });
    const auto apart = [&](std::size_t n) {
        return costs.in_chunks(n, method, steps) || costs.together(n, method, steps);
    };
    const RowTasks tasks(P.R.indptr, P.R.rows, threads,
                         [&](std::size_t n) { return apart(n) ? 0 : costs.least(n, method, steps); });
    parallel_for(threads, tasks.count(), [&](std::size_t task, std::size_t worker) {
        for (std::size_t i = tasks.start[task]; i < tasks.start[task + 1]; ++i) {
            if (apart(P.length(tasks.order[i]))) continue;  // done already
            // The next row's first factors come from memory while this one is solved.
            if (i + 1 < tasks.start[task + 1]) {
                const std::int64_t next = P.R.indptr[tasks.order[i + 1]];
                const auto n = static_cast<std::int64_t>(std::min<std::size_t>(8, P.length(tasks.order[i + 1])));
                for (std::int64_t t = 0; t < n; ++t) prefetch_row(P.factors(next + t), P.k);
            }
            if (!solve(tasks.order[i], scratch[worker])) failed.add(tasks.order[i]);
        }
    });
    return failed.row_or_none();
}

}  // namespace

double row_cost(const std::int64_t* indptr, std::size_t rows, std::size_t k, Method method, std::size_t steps) {
    const Costs costs(k, Scratch::most_rows(k));
    double total = 0;
    for (std::size_t row = 0; row < rows; ++row)
        if (indptr[row] < indptr[row + 1])
            total += costs.least(static_cast<std::size_t>(indptr[row + 1] - indptr[row]), method, steps);
    return total;
}

std::int64_t explicit_rows(const Sparse& R, const float* Y, std::size_t k, const float* column_bias, float mean,
                           const RowOptions& options, const RowResults& results) {
    const auto& [reg, spectrum, prior, method, steps, threads] = options;
    const auto& [X, bias, objective] = results;
    const Explicit kind{column_bias, mean};
    if (bias)
        return solve_rows(Problem<Explicit, true>{R, kind, Y, k, reg, spectrum, prior, X, bias, objective}, options);
    return solve_rows(Problem<Explicit, false>{R, kind, Y, k, reg, spectrum, prior, X, bias, objective}, options);
}

std::int64_t implicit_rows(const Sparse& R, const float* Y, std::size_t k, float alpha, const RowOptions& options,
                           const RowResults& results) {
    const auto& [reg, spectrum, prior, method, steps, threads] = options;
    const auto& [X, bias, objective] = results;
    return solve_rows(Problem<Implicit, false>{R, {alpha}, Y, k, reg, spectrum, prior, X, bias, objective}, options);
}

}  // namespace eckart
