// Stratified block SGD: one pass over the observed entries, the same bits for any number of threads.
//
// Rows and columns are dealt to places, and places cut into a B x B grid of blocks (Gemulla et al. 2011). Stratum s is
// the B blocks (p, (p + s) mod B): no two share a row or a column, so they run in parallel without locks, each in its
// own fixed order; strata run one after the other. For an entry (u, i) with error e = r - mean - b_u - c_i - w_u . h_i
//
//     w_u += a (e h_i - reg w_u)      a  = step / sqrt(1 + S_u / k)
//     b_u += a' (e - reg b_u)         a' = step / sqrt(1 + S_u)         then S_u += e^2
//
// and alike for the item, all from the values before. That is Adagrad with one accumulator a vector (Chin et al.
// 2015), where the squared gradient e^2 |h_i|^2 / k of a coordinate is taken for e^2 / k, so that the vector and the
// bias share one sum. An accumulator a coordinate would double the memory traffic.
//
// With the logistic loss an entry is 1 and e = 1 - p or, of a drawn cell, -p, with p = 1 / (1 + exp(-score)); rows then
// have no bias, which would not rank. A row of n_u entries draws in block column q about negatives n_u |q| / m cells,
// after its entries there: the number rounded up or down at random so that the mean holds, each column of the block as
// likely as another, entries among them. Draws are a hash of (draw, row, block), whoever makes them.
//
// An update at k = 64 is 8 k = 512 flops on 2 x 256 bytes, read and written. In a block entries are sorted by row, then
// by column: a row is read and written once a block and stays in registers in between, the rows stand in memory in
// the order of the visits, and B is so large that the columns of a block fit the second-level cache.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "dense.h"
#include "kernels.h"
#include "parallel.h"

namespace eckart {

void sgd_layout(const Sparse& R, const SgdGrid& grid, const std::int32_t* row_at, const std::int32_t* place_of,
                std::int64_t* starts, std::int32_t* columns, float* values, std::size_t threads) {
    const std::size_t B = grid.blocks;
    std::vector<std::int64_t> base(B + 1, 0);  // entries before each block row
    std::vector<std::int32_t> block_of(R.columns);
    for (std::size_t p = 0; p < B; ++p) {
        base[p + 1] = base[p];
        for (std::int64_t t = grid.rows[p]; t < grid.rows[p + 1]; ++t)
            base[p + 1] += R.indptr[row_at[t] + 1] - R.indptr[row_at[t]];
        std::fill(block_of.begin() + grid.columns[p], block_of.begin() + grid.columns[p + 1],
                  static_cast<std::int32_t>(p));
    }
    parallel_for(threads, B, [&](std::size_t p, std::size_t) {
        const std::int64_t first = grid.rows[p], height = grid.rows[p + 1] - first;
        std::int64_t* start = starts + first * static_cast<std::int64_t>(B);
        std::fill(start, start + height * static_cast<std::int64_t>(B), 0);
        std::vector<std::pair<std::int32_t, float>> row;
        for (std::int64_t t = 0; t < height; ++t) {
            const std::int64_t u = row_at[first + t];
            for (std::int64_t e = R.indptr[u]; e < R.indptr[u + 1]; ++e)
                ++start[block_of[place_of[R.indices[e]]] * height + t];
        }
        std::int64_t next = base[p];
        for (std::int64_t x = 0; x < height * static_cast<std::int64_t>(B); ++x) {
            const std::int64_t count = start[x];
            start[x] = next;
            next += count;
        }
        for (std::int64_t t = 0; t < height; ++t) {
            const std::int64_t u = row_at[first + t];
            row.clear();
            for (std::int64_t e = R.indptr[u]; e < R.indptr[u + 1]; ++e)
                row.emplace_back(place_of[R.indices[e]], R.values[e]);
            std::sort(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
            std::int32_t q = -1;
            std::int64_t to = 0;
            for (const auto& [place, value] : row) {
                if (block_of[place] != q) {
                    q = block_of[place];
                    to = start[q * height + t];
                }
                columns[to] = place;
                values[to++] = value;
            }
        }
    });
    starts[grid.rows[B] * static_cast<std::int64_t>(B)] = base[B];
}

namespace {

struct Rule {
    float step, reg, mean, inverse_k;
    std::size_t vectors;  // of W floats in a row
};

// A vector's scalars: its bias and the sum of its squared errors.
struct Scalars {
    float bias, sum;
};

// A row that is being walked. With NV > 0 its vector is in `own`, in registers or first-level cache, else in place.
template <std::size_t NV>
struct Lane {
    alignas(64) float own[NV ? NV * W : 1];
    float* row;
    float* scalars;
    Scalars a;
    std::int64_t next = 0, end = 0;

    void take(float* row_, float* scalars_, std::int64_t begin, std::int64_t end_) {
        row = row_, scalars = scalars_, next = begin, end = end_;
        std::memcpy(&a, scalars, sizeof a);
        for (std::size_t f = 0; NV && f < NV * W; f += W) store(own + f, load(row + f));
    }
    void leave() {
        for (std::size_t f = 0; NV && f < NV * W; f += W) store(row + f, load(own + f));
        std::memcpy(scalars, &a, sizeof a);
    }
};

// One entry; returns its loss.
template <std::size_t NV, bool logistic>
inline float update(const Rule& c, Lane<NV>& lane, float* h, float* column_scalars, float r) {
    const std::size_t nv = NV ? NV : c.vectors;
    float* w = NV ? lane.own : lane.row;
    Scalars& a = lane.a;
    Scalars b;
    std::memcpy(&b, column_scalars, sizeof b);
    vec s[2] = {};
#pragma GCC unroll 8
    for (std::size_t v = 0; v < nv; ++v) s[v % 2] += load(w + v * W) * load(h + v * W);
    const float product = sum(s[0] + s[1]), score = product + (c.mean + a.bias + b.bias);
    const float e = r - (logistic ? 1 / (1 + std::exp(-score)) : score);
    const quad scale = {c.inverse_k, 1, c.inverse_k, 1}, sums = {a.sum, a.sum, b.sum, b.sum};
    const quad steps = c.step * inverse_sqrt(1 + scale * sums), keep = 1 - c.reg * steps, move = e * steps;
    a = {logistic ? a.bias : keep[1] * a.bias + move[1], a.sum + e * e};
    b = {keep[3] * b.bias + move[3], b.sum + e * e};
    std::memcpy(column_scalars, &b, sizeof b);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < nv; ++v) {
        const vec x = load(w + v * W), y = load(h + v * W);
        store(w + v * W, keep[0] * x + move[0] * y);
        store(h + v * W, keep[2] * y + move[2] * x);
    }
    if (!logistic) return e * e;
    const float wrong = r > 0 ? -score : score;  // log(1 + exp(wrong)) without overflow
    return std::max(wrong, 0.f) + std::log1p(std::exp(-std::abs(wrong)));
}

// Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
inline std::uint64_t mix(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

struct Draws {
    double negatives;
    std::uint64_t key;
};

// A block with its drawn cells.
struct Drawn {
    std::vector<std::int64_t> starts;
    std::vector<std::int32_t> columns;
    std::vector<float> values;

    Drawn(const Draws& draws, const SgdGrid& grid, const SgdEntries& entries, std::size_t p, std::size_t q) {
        const std::int64_t first = grid.rows[p], height = grid.rows[p + 1] - first;
        const std::int64_t* all = entries.starts + first * static_cast<std::int64_t>(grid.blocks);
        const std::int64_t left = grid.columns[q], width = grid.columns[q + 1] - left;
        const double share = draws.negatives * static_cast<double>(width) / grid.columns[grid.blocks];
        starts.push_back(0);
        for (std::int64_t t = 0; t < height; ++t) {
            std::int64_t own = 0;
            for (std::size_t b = 0; b < grid.blocks; ++b) own += all[b * height + t + 1] - all[b * height + t];
            for (std::int64_t x = all[q * height + t]; x < all[q * height + t + 1]; ++x) {
                columns.push_back(entries.columns[x]);
                values.push_back(1);
            }
            const std::uint64_t seed = mix(draws.key ^ mix(static_cast<std::uint64_t>(first + t) * grid.blocks + q));
            const double up = static_cast<double>(mix(seed) >> 11) * 0x1p-53;
            const std::int64_t count = static_cast<std::int64_t>(std::floor(static_cast<double>(own) * share + up));
            for (std::int64_t j = 1; j <= count; ++j) {
                const std::uint64_t high = mix(seed + static_cast<std::uint64_t>(j)) >> 32;
                columns.push_back(static_cast<std::int32_t>(
                    left + static_cast<std::int64_t>(high * static_cast<std::uint64_t>(width) >> 32)));
                values.push_back(0);
            }
            starts.push_back(static_cast<std::int64_t>(columns.size()));
        }
    }
};

// Two rows are walked in turns: what one's next update waits for, the sum of a dot product, the other's does not.
template <std::size_t NV, bool logistic>
double block(const Rule& c, const SgdGrid& grid, const std::int64_t* start, const std::int32_t* columns,
             const float* values, const SgdModel& m, std::size_t p) {
    const std::size_t kp = c.vectors * W;
    const std::int64_t first = grid.rows[p], height = grid.rows[p + 1] - first;
    const std::int64_t last = start[height] - 1;
    double loss = 0;
    std::int64_t t = 0;
    const auto refill = [&](Lane<NV>& lane) {
        while (t < height && start[t] == start[t + 1]) ++t;
        if (t == height) return false;
        lane.take(m.W + (first + t) * kp, m.row_scalars + 2 * (first + t), start[t], start[t + 1]);
        ++t;
        return true;
    };
    const auto step = [&](Lane<NV>& lane) {
        const std::int64_t x = lane.next++;
        const float* ahead = m.H + static_cast<std::size_t>(columns[std::min(x + 2, last)]) * kp;
        for (std::size_t f = 0; f < (NV ? NV * W : kp); f += 16) __builtin_prefetch(ahead + f, 1);
        const std::size_t i = static_cast<std::size_t>(columns[x]);
        loss += update<NV, logistic>(c, lane, m.H + i * kp, m.column_scalars + 2 * i, values[x]);
    };
    Lane<NV> one, two;
    bool left = refill(one), right = refill(two);
    while (left && right) {
        for (std::int64_t both = std::min(one.end - one.next, two.end - two.next); both; --both) {
            step(one);
            step(two);
        }
        if (one.next == one.end) {
            one.leave();
            left = refill(one);
        }
        if (two.next == two.end) {
            two.leave();
            right = refill(two);
        }
    }
    for (Lane<NV>* rest : {&one, &two})
        if (rest == &one ? left : right) {
            while (rest->next < rest->end) step(*rest);
            rest->leave();
        }
    return loss;
}

}  // namespace

double sgd_epoch(const SgdGrid& grid, const SgdEntries& entries, const std::int32_t* strata, const SgdModel& model,
                 std::size_t k, float mean, float reg, float step, double negatives, std::uint64_t draw,
                 std::size_t threads) {
    const std::size_t B = grid.blocks;
    const Rule c{step, reg, mean, 1 / static_cast<float>(k), model.width / W};
    std::vector<double> loss(B * B);
    for (std::size_t s = 0; s < B; ++s)
        parallel_for(threads, B, [&](std::size_t p, std::size_t) {
            const std::size_t q = (p + static_cast<std::size_t>(strata[s])) % B;
            const auto run = [&](auto nv) {
                constexpr std::size_t NV = decltype(nv)::value;
                if (negatives > 0) {
                    const Drawn drawn({negatives, draw}, grid, entries, p, q);
                    return block<NV, true>(c, grid, drawn.starts.data(), drawn.columns.data(), drawn.values.data(),
                                           model, p);
                }
                const std::int64_t *all = entries.starts + grid.rows[p] * static_cast<std::int64_t>(B),
                                   *start = all + static_cast<std::int64_t>(q) * (grid.rows[p + 1] - grid.rows[p]);
                return block<NV, false>(c, grid, start, entries.columns, entries.values, model, p);
            };
            double& own = loss[p * B + q];
            switch (c.vectors) {
                case 1:
                    own = run(std::integral_constant<std::size_t, 1>{});
                    break;
                case 2:
                    own = run(std::integral_constant<std::size_t, 2>{});
                    break;
                case 4:
                    own = run(std::integral_constant<std::size_t, 4>{});
                    break;
                case 8:
                    own = run(std::integral_constant<std::size_t, 8>{});
                    break;
                default:
                    own = run(std::integral_constant<std::size_t, 0>{});
            }
        });
    double total = 0;
    for (const double part : loss) total += part;
    return total;
}

}  // namespace eckart
