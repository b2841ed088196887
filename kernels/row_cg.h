// Rows improved by conjugate gradients from where they stood: n k work a look at the entries, in place of n k^2 in all.
//
// The preconditioner is a diagonal. In the basis where the shared term is diagonal the entries' own term is nearly so:
// its diagonal is taken to be sum_t w_t times the columns' mean square, `mean_square` (k).
//
// A row whose gathered factors fit in the second-level cache is gathered once for all looks. Longer ones are improved
// together, a look of all of them at a time: it goes over blocks of columns that fit in that cache, and every row takes
// from a block what it has there. Row after row, the factors would come from memory at every look.
#pragma once

#include <vector>

#include "rows.h"

namespace eckart {

// A row between looks: u is sought, r = -1/2 gradient at u, p the direction, q = A p, and the same of the bias.
struct Improving {
    std::int64_t row;
    float *u, *r, *p, *q;  // kp each
    std::int64_t at = 0;   // the entry to look at next
    bool done = false;
    double total = 0, rz = 0, least = 0, curvature = 0;
    float weight = 0, r_b = 0, p_b = 0, q_b = 0;
};

template <class Kind, bool with_bias>
inline void begin_cg(const Problem<Kind, with_bias>& P, Improving& c, Scratch& m) {
    begin_iteration(P, c.row, c.u, m);
    std::memset(c.r, 0, m.kp * sizeof(float));
    c.total = penalty(P, c.row, c.u, m);
    c.at = P.R.indptr[c.row];
}

// The first look, at n gathered and padded entries: e = v~ - b r - Y~ u, of which r is the sum.
template <class Kind, bool with_bias>
inline void look_first(const Problem<Kind, with_bias>& P, Improving& c, std::size_t n, Scratch& m) {
    const std::size_t np = padded(n);
    for (std::size_t t = 0; t < np; t += W) {  // W rows at a time, so that the second product finds them in L1
        store(m.e + t, residual(with_bias ? P.bias[c.row] : 0, c.u, t, m));
        add_rows(m.Y + t * m.kp, m.kp, m.e + t, W, m.kp, c.r);
    }
    c.total += dot(m.e, m.e, np);
    c.weight += dot(m.root, m.root, np);
    if (with_bias) c.r_b += dot(m.root, m.e, np);
}

// The inverse of the preconditioner, of the factors in m.inverse, of the bias returned.
template <class Kind, bool with_bias>
inline float precondition(const Problem<Kind, with_bias>& P, const Improving& c, const float* mean_square, Scratch& m) {
    for (std::size_t f = 0; f < P.k; ++f) m.inverse[f] = 1 / (m.D[f] + c.weight * mean_square[f]);
    for (std::size_t f = P.k; f < m.kp; ++f) m.inverse[f] = 0;
    return with_bias ? 1 / (P.reg[c.row] + c.weight) : 0;
}

// After the first look. D is there, as in all that follows.
template <class Kind, bool with_bias>
inline void first_direction(const Problem<Kind, with_bias>& P, Improving& c, const float* mean_square, Scratch& m) {
    const float inverse_b = precondition(P, c, mean_square, m);
    for (std::size_t f = 0; f < m.kp; f += W) {
        store(c.r + f, load(c.r + f) - load(m.D + f) * load(c.u + f));
        store(c.p + f, load(m.inverse + f) * load(c.r + f));
    }
    if (with_bias) c.r_b -= P.reg[c.row] * P.bias[c.row];
    c.p_b = inverse_b * c.r_b;
    c.rz = static_cast<double>(dot(c.r, c.p, m.kp)) + c.r_b * c.p_b;
    c.least = 1e-12 * c.rz;  // below it, what is left of r is rounding
    c.done = !(c.rz > c.least);
}

template <class Kind, bool with_bias>
inline void begin_step(const Problem<Kind, with_bias>& P, Improving& c, Scratch& m) {
    for (std::size_t f = 0; f < m.kp; f += W) store(c.q + f, load(m.D + f) * load(c.p + f));
    c.q_b = P.reg[c.row] * c.p_b;
    c.curvature = static_cast<double>(dot(c.p, c.q, m.kp)) + (with_bias ? c.p_b * c.q_b : 0);
    c.at = P.R.indptr[c.row];
}

// A step's look: e = Y~ p + p_b r, of which q is the sum. The last step needs no q, only p . q = |e|^2 + ...
template <bool with_bias>
inline void look(Improving& c, std::size_t n, bool last, Scratch& m) {
    const std::size_t np = padded(n), kp = m.kp;
    for (std::size_t t = 0; t < np; t += W) {
        store(m.e + t, dots(m.Y + t * kp, kp, c.p, kp) + c.p_b * load(m.root + t));
        if (!last) add_rows(m.Y + t * kp, kp, m.e + t, W, kp, c.q);
    }
    c.curvature += dot(m.e, m.e, np);
    if (with_bias) c.q_b += dot(m.root, m.e, np);
}

template <class Kind, bool with_bias>
inline void end_step(const Problem<Kind, with_bias>& P, Improving& c, bool last, const float* mean_square, Scratch& m) {
    c.done = last || !(c.curvature > 0);
    if (!(c.curvature > 0)) return;
    const auto length = static_cast<float>(c.rz / c.curvature);
    c.total -= c.rz * length;
    axpy(length, c.p, c.u, m.kp);
    if (with_bias) P.bias[c.row] += length * c.p_b;
    if (last) return;
    axpy(-length, c.q, c.r, m.kp);
    if (with_bias) c.r_b -= length * c.q_b;
    const float inverse_b = precondition(P, c, mean_square, m);
    for (std::size_t f = 0; f < m.kp; f += W) store(c.q + f, load(m.inverse + f) * load(c.r + f));
    const double next = static_cast<double>(dot(c.r, c.q, m.kp)) + c.r_b * inverse_b * c.r_b;
    const auto beta = static_cast<float>(next / c.rz);
    for (std::size_t f = 0; f < m.kp; f += W) store(c.p + f, load(c.q + f) + beta * load(c.p + f));
    c.p_b = inverse_b * c.r_b + beta * c.p_b;
    c.rz = next;
    c.done = !(c.rz > c.least);
}

template <class Kind, bool with_bias>
inline bool end_cg(const Problem<Kind, with_bias>& P, Improving& c, Scratch& m) {
    end_row(P, c.row, m, c.u);
    P.objective[c.row] = c.total;
    return std::isfinite(c.total);
}

// A row of at most m.most entries.
template <class Kind, bool with_bias>
inline bool solve_cg(const Problem<Kind, with_bias>& P, std::int64_t row, std::size_t steps, const float* mean_square,
                     Scratch& m) {
    const std::size_t n = P.length(row);
    Improving c{row, m.u, m.g, m.s, m.z};
    begin_cg(P, c, m);
    gather(P, P.R.indptr[row], P.R.indptr[row + 1], n, m);
    pad(n, m);
    look_first(P, c, n, m);
    first_direction(P, c, mean_square, m);
    for (std::size_t step = 0; step < steps && !c.done; ++step) {
        begin_step(P, c, m);
        look<with_bias>(c, n, step + 1 == steps, m);
        end_step(P, c, step + 1 == steps, mean_square, m);
    }
    return end_cg(P, c, m);
}

// A look of all rows that are not done: body(row, n) has n gathered and padded entries of it.
template <class Kind, bool with_bias, class Body>
inline void look_by_blocks(const Problem<Kind, with_bias>& P, std::vector<Improving>& rows, Scratch& m,
                           const Body& body) {
    for (std::size_t block = m.most;; block += m.most) {  // columns before `block`
        for (Improving& c : rows) {
            const std::int64_t end = P.R.indptr[c.row + 1];
            const auto here = [&](std::int64_t t) { return static_cast<std::size_t>(P.R.indices[t]) < block; };
            if (c.done || c.at == end || !here(c.at)) continue;
            if (P.prior) std::memcpy(m.p, P.prior + c.row * P.k, P.k * sizeof(float));
            while (c.at < end && here(c.at)) {
                std::size_t n = 1;
                while (n < m.panel && c.at + static_cast<std::int64_t>(n) < end &&
                       here(c.at + static_cast<std::int64_t>(n)))
                    ++n;
                const std::int64_t to = c.at + static_cast<std::int64_t>(n);
                gather(P, c.at, to, n, m);
                pad(n, m);
                body(c, n);
                c.at = to;
            }
        }
        if (block >= P.R.columns) return;
    }
}

// Rows of any length; calls fail(row) for each that is not finite.
template <class Kind, bool with_bias, class Fail>
inline void solve_cg_together(const Problem<Kind, with_bias>& P, const std::vector<std::int64_t>& rows,
                              std::size_t steps, const float* mean_square, Scratch& m, const Fail& fail) {
    const Floats state = floats(rows.size() * 4 * m.kp);
    std::vector<Improving> all;
    float* next = state.get();
    for (const std::int64_t row : rows) {
        all.push_back({row, next, next + m.kp, next + 2 * m.kp, next + 3 * m.kp});
        next += 4 * m.kp;
    }
    const auto each = [&](const auto& body) {
        for (Improving& c : all) {
            if (c.done) continue;
            begin_row(P, c.row, m);
            body(c);
        }
    };
    each([&](Improving& c) { begin_cg(P, c, m); });
    look_by_blocks(P, all, m, [&](Improving& c, std::size_t n) { look_first(P, c, n, m); });
    each([&](Improving& c) { first_direction(P, c, mean_square, m); });
    for (std::size_t step = 0; step < steps; ++step) {
        const bool last = step + 1 == steps;
        each([&](Improving& c) { begin_step(P, c, m); });
        look_by_blocks(P, all, m, [&](Improving& c, std::size_t n) { look<with_bias>(c, n, last, m); });
        each([&](Improving& c) { end_step(P, c, last, mean_square, m); });
    }
    for (Improving& c : all) {
        begin_row(P, c.row, m);
        if (!end_cg(P, c, m)) fail(c.row);
    }
}

}  // namespace eckart
