// One row's least squares problem, and a worker's scratch for it.
//
// For row u with entries in columns i_t, weights w_t and targets v_t, a solver seeks
//     min over x, b   sum_t w_t (v_t - b - x . y_t)^2 + l_u b^2 + (x - p_u)^T D_u (x - p_u),   D_u = diag(l_u +
//     spectrum).
// The spectrum (k) is a quadratic term that all rows share, in the basis where it is diagonal; p_u is where a row is
// pulled to, 0 unless given; the bias b is there or not. Everything below works on the shift u = x - p_u, on rows
// scaled by the root of their weight, and has no other case:
//     min over u, b   |v~ - b r - Y~ u|^2 + l_u b^2 + u^T D_u u,     r_t = sqrt(w_t), y~_t = r_t y_t,
//                                                                    v~_t = r_t (v_t - y_t . p_u).
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "dense.h"
#include "kernels.h"

namespace eckart {

// What an entry weighs and aims at. Explicit (Zhou et al. 2008): the rating less the mean and the column's bias.
struct Explicit {
    const float* column_bias;
    float mean;
    float weight(float) const { return 1; }
    float target(float value, std::size_t column) const { return value - mean - column_bias[column]; }
};
// Implicit (Hu et al. 2008): 1, with a weight that grows with the value.
struct Implicit {
    float alpha;
    float weight(float value) const { return alpha * value; }
    float target(float, std::size_t) const { return 1; }
};

template <class Kind, bool with_bias>
struct Problem {
    Sparse R;
    Kind kind;
    const float* Y;  // columns x k
    std::size_t k;
    const float* reg;       // rows
    const float* spectrum;  // k, or null
    const float* prior;     // rows x k, or null
    float* X;               // rows x k: where the iterative solvers start, and the result
    float* bias;            // rows, if with_bias
    double* objective;      // rows: the value reached

    std::size_t length(std::int64_t row) const { return static_cast<std::size_t>(R.indptr[row + 1] - R.indptr[row]); }
    const float* factors(std::int64_t entry) const { return Y + static_cast<std::size_t>(R.indices[entry]) * k; }
};

// Zeros, aligned to a cache line.
using Floats = std::unique_ptr<float[], void (*)(float*)>;
inline Floats floats(std::size_t size) {
    constexpr std::align_val_t line{64};
    auto* p = static_cast<float*>(::operator new[](size * sizeof(float), line));
    std::memset(p, 0, size * sizeof(float));
    return {p, [](float* p) { ::operator delete[](p, line); }};
}

// One worker's arrays, allocated once.
struct Scratch {
    // A panel of gathered rows and the tile being summed must share the first-level cache (32 KB); the rows of a row
    // that is solved in several passes lie in the second.
    static constexpr std::size_t panel_bytes = 16 * 1024, rows_bytes = 512 * 1024;

    std::size_t kp, panel, most;
    Floats memory;
    float *A, *Y, *g, *s, *D, *p, *u, *z, *inverse, *v, *root, *e;
    std::vector<float> residual;  // of all entries of the row, where a solver keeps it from step to step

    explicit Scratch(std::size_t k)
        : kp(padded(k)),
          panel(std::max<std::size_t>(16, panel_bytes / (kp * sizeof(float)))),
          most(most_rows(k)),
          memory(floats(kp * kp + most * kp + 7 * kp + 3 * most)) {
        float* next = memory.get();
        const auto take = [&](std::size_t floats) { return std::exchange(next, next + floats); };
        A = take(kp * kp);
        Y = take(most * kp);
        for (float** one : {&g, &s, &D, &p, &u, &z, &inverse}) *one = take(kp);
        for (float** one : {&v, &root, &e}) *one = take(most);
    }

    static std::size_t most_rows(std::size_t k) {
        return std::max(padded(k), rows_bytes / (padded(k) * sizeof(float)) / W * W);
    }
};

inline void prefetch_row(const float* y, std::size_t k) {
    for (std::size_t j = 0; j < k; j += 16) __builtin_prefetch(y + j);
}

// The first min(n, W) floats at p, then zeros.
inline vec load_first(const float* p, std::size_t n) {
    if (n >= W) return load(p);
    vec x{};
    std::memcpy(&x, p, n * sizeof(float));
    return x;
}

// D_u, and p_u where there is one.
template <class Kind, bool with_bias>
inline void begin_row(const Problem<Kind, with_bias>& P, std::int64_t row, Scratch& m) {
    for (std::size_t f = 0; f < P.k; ++f) m.D[f] = P.reg[row] + (P.spectrum ? P.spectrum[f] : 0);
    for (std::size_t f = P.k; f < m.kp; ++f) m.D[f] = 1;
    if (P.prior) std::memcpy(m.p, P.prior + row * P.k, P.k * sizeof(float));
}

// x = p + u
template <class Kind, bool with_bias>
inline void end_row(const Problem<Kind, with_bias>& P, std::int64_t row, const Scratch& m, const float* u) {
    float* x = P.X + row * P.k;
    for (std::size_t f = 0; f < P.k; ++f) x[f] = P.prior ? m.p[f] + u[f] : u[f];
}

// r_t and v~_t (without its product with p) of n entries.
template <class Kind, bool with_bias>
inline void weigh(const Problem<Kind, with_bias>& P, std::int64_t from, std::size_t n, Scratch& m) {
    const float* values = P.R.values + from;
    const std::int32_t* columns = P.R.indices + from;
    float *root = m.root, *v = m.v;
    for (std::size_t t = 0; t < n; ++t) {
        root[t] = std::sqrt(P.kind.weight(values[t]));
        v[t] = root[t] * P.kind.target(values[t], static_cast<std::size_t>(columns[t]));
    }
}

// y~_t, r_t and v~_t of n entries, n <= most; rows are kp apart.
template <class Kind, bool with_bias>
inline void gather(const Problem<Kind, with_bias>& P, std::int64_t from, std::int64_t end, std::size_t n, Scratch& m) {
    // A gathered row is k / 16 cache lines from memory, ~90 ns away, and copied in a few: 8 to 24 ahead serve alike.
    constexpr std::int64_t ahead = 16;
    weigh(P, from, n, m);
    const std::size_t k = P.k, whole = k / W * W;
    for (std::size_t t = 0; t < n; ++t) {
        const std::int64_t entry = from + static_cast<std::int64_t>(t);
        if (entry + ahead < end) prefetch_row(P.factors(entry + ahead), k);
        const float *y = P.factors(entry), root = m.root[t];
        float* out = m.Y + t * m.kp;
        for (std::size_t f = 0; f < whole; f += W) store(out + f, load(y + f) * root);
        if (whole < k) store(out + whole, load_first(y + whole, k - whole) * root);  // the padding is not left alone
    }
    if (P.prior)
        for (std::size_t t = 0; t < n; ++t) m.v[t] -= dot(m.Y + t * m.kp, m.p, m.kp);
}

// Rows of zeros after n gathered ones, up to a whole vector of them.
inline void pad(std::size_t n, Scratch& m) {
    std::memset(m.Y + n * m.kp, 0, (padded(n) - n) * m.kp * sizeof(float));
    for (std::size_t t = n; t < padded(n); ++t) m.root[t] = m.v[t] = 0;
}

// For the solvers that go on from where a row stands: D, p and the shift u.
template <class Kind, bool with_bias>
inline void begin_iteration(const Problem<Kind, with_bias>& P, std::int64_t row, float* u, Scratch& m) {
    begin_row(P, row, m);
    const float* x = P.X + row * P.k;
    for (std::size_t f = 0; f < P.k; ++f) u[f] = P.prior ? x[f] - m.p[f] : x[f];
}

// e = v~ - b r - Y~ u of W gathered entries.
inline vec residual(float bias, const float* u, std::size_t t, const Scratch& m) {
    return load(m.v + t) - bias * load(m.root + t) - dots(m.Y + t * m.kp, m.kp, u, m.kp);
}

// l_u b^2 + u^T D u
template <class Kind, bool with_bias>
inline double penalty(const Problem<Kind, with_bias>& P, std::int64_t row, const float* u, const Scratch& m) {
    vec total{};
    for (std::size_t f = 0; f < m.kp; f += W) total += load(m.D + f) * load(u + f) * load(u + f);
    return sum(total) + (with_bias ? static_cast<double>(P.reg[row]) * P.bias[row] * P.bias[row] : 0);
}

}  // namespace eckart
