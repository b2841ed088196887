// The best items of one query: a pass over bytes tells which few items have to be scored.
//
// One query against all items is two flops for every four bytes read, so it takes as long as the memory. Bytes are
// a quarter of it: item j is kept as y_j = s_j z_j + e_j with z_j in -127..127, and by Cauchy and Schwarz
//
//     q . y_j + c_j  <=  s_j (q . z_j) + |q| |e_j| + c_j.
//
// An item whose bound is below the query's worst kept score cannot enter; the others are scored from their float32
// factors, in the order of summation of top_k. At k = 64 the bound is within 1 % of |q| |y_j|, and about a hundred of
// 27,000 items are scored. Items lie in an order of the caller's, large |y_j| and c_j first: then the worst kept score
// is soon high, and most panels are passed over by |q| max |y_j| + max c_j alone, unread. Ties go to the lower item
// whatever the order, because an item with the worst's own score is still compared.
//
// The stored norms and c_j are enlarged by what float32 can round in either sum (n terms: n u times |q| |y_j|, Higham
// 2002, section 3.1, u = 2^-24), so no item is ever missed.
#include <cmath>

#include "kept.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace eckart {
namespace {

constexpr std::size_t CV = 4;       // vectors of a panel: as many sums at once hide the latency of each
constexpr std::size_t CW = CV * W;  // at 16 lanes, a factor of a panel is one cache line
constexpr double unit = 0x1p-24;
constexpr std::size_t part_bytes = 2 << 20;  // codes that are worth starting a thread for: about 0.1 ms

float rounded_up(double x) {
    const auto y = static_cast<float>(x);
    return y < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

// The score as top_k computes it: f ascending, products and sums fused wherever the tile's are. Said outright, because
// a compiler that sums in order may multiply ahead, and a product that is rounded before its sum gives other bits.
float exact_score(const float* q, const float* y, std::size_t k, float bias) {
    float s = 0;
    for (std::size_t f = 0; f < k; ++f)
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
        s = std::fma(q[f], y[f], s);
#else
        s += q[f] * y[f];
#endif
    return s + bias;
}

}  // namespace

std::size_t code_width() { return CW; }
std::size_t code_bounds() { return 4; }

bool pack_codes(const float* Y, std::size_t items, std::size_t k, const float* bias, const std::int32_t* order,
                std::int8_t* codes, float* bounds, std::size_t threads) {
    std::atomic<bool> sound{true};
    parallel_for(threads, (items + CW - 1) / CW, [&](std::size_t panel, std::size_t) {
        std::int8_t* code = codes + panel * k * CW;
        float *scale = bounds + panel * 4 * CW, *slack = scale + CW, *shift = slack + CW, *ceiling = shift + CW;
        std::fill(ceiling, ceiling + CW, 0.f);  // of the panel: [0] a norm, [1] a shift
        ceiling[1] = -std::numeric_limits<float>::infinity();
        for (std::size_t j = 0; j < CW; ++j) {
            const std::size_t place = panel * CW + j, item = place < items ? order[place] : items;
            double largest = 0, norm = 0, error = 0;
            const float* y = Y + item * k;
            if (item < items)
                for (std::size_t f = 0; f < k; ++f) {
                    largest = std::max<double>(largest, std::fabs(y[f]));
                    norm += static_cast<double>(y[f]) * y[f];
                }
            norm = std::sqrt(norm);
            const bool fits = item < items && norm < 1e15 && std::fabs(bias[item]) < 1e30;  // a NaN does not
            if (item < items && !fits) sound.store(false, std::memory_order_relaxed);
            scale[j] = fits ? static_cast<float>(largest / 127) : 0;
            for (std::size_t f = 0; f < k; ++f) {
                const double z = scale[j] > 0 ? std::nearbyint(static_cast<double>(y[f]) / scale[j]) : 0;
                code[f * CW + j] = static_cast<std::int8_t>(std::min(127., std::max(-127., z)));
                const double e = fits ? y[f] - static_cast<double>(scale[j]) * code[f * CW + j] : 0;
                error += e * e;
            }
            error = std::sqrt(error);
            // 2 k + 16 roundings: k + 1 in each of the two sums, then a few to put the bound together.
            slack[j] =
                rounded_up((error + (2. * static_cast<double>(k) + 16) * unit * (norm + error)) * (1 + 16 * unit));
            // 1e-24 is above all that can be lost to underflow.
            shift[j] = fits ? rounded_up(bias[item] + 16 * unit * std::fabs(bias[item]) + 1e-24)
                            : -std::numeric_limits<float>::infinity();
            ceiling[0] = std::max(ceiling[0], rounded_up(norm * (1 + (2. * static_cast<double>(k) + 16) * unit)));
            ceiling[1] = std::max(ceiling[1], shift[j]);
        }
    });
    return sound;
}

void top_one(const float* Q, std::size_t queries, std::size_t k, const float* Y, const std::int8_t* codes,
             const float* bounds, const std::int32_t* order, std::size_t items, const float* bias,
             const std::int64_t* exclude_indptr, const std::int32_t* exclude, std::size_t top, std::int32_t* best,
             float* score, std::size_t threads) {
    // A query's panels may be split over threads: "better" is a total order, so the best of the parts' best are the
    // best of all, however they were split.
    const std::size_t panels = (items + CW - 1) / CW;
    const std::size_t parts =
        std::max<std::size_t>(1, std::min(threads / std::max<std::size_t>(1, queries), panels * CW * k / part_bytes));
    std::vector<Query> found(queries * parts);
    for (auto& one : found) one.heap.reserve(std::min(top, items) * parts + 1);
    parallel_for(threads, queries * parts, [&](std::size_t task, std::size_t) {
        const std::size_t row = task / parts, part = task % parts;
        const float* q = Q + row * k;
        Query& one = found[task];
        one.begin(exclude + exclude_indptr[row], exclude + exclude_indptr[row + 1]);
        double squares = 0;
        for (std::size_t f = 0; f < k; ++f) squares += static_cast<double>(q[f]) * q[f];
        const float length = rounded_up(std::sqrt(squares));
        for (std::size_t panel = part; panel < panels; panel += parts) {
            const std::int8_t* code = codes + panel * k * CW;
            const float* bound = bounds + panel * 4 * CW;
            if (length * bound[3 * CW] + bound[3 * CW + 1] < one.worst) continue;
            vec dot[CV] = {};
            for (std::size_t f = 0; f < k; ++f)
#pragma GCC unroll 4
                for (std::size_t v = 0; v < CV; ++v) dot[v] += q[f] * load_bytes(code + f * CW + v * W);
            for (std::size_t v = 0; v < CV; ++v) {
                const vec rest = load(bound + 2 * CW + v * W) + length * load(bound + CW + v * W);
                const vec limit = dot[v] * load(bound + v * W) + rest;
                const float below = std::nextafter(one.worst, -std::numeric_limits<float>::infinity());
                for (std::uint32_t mask = greater(limit, broadcast(below)); mask; mask &= mask - 1) {
                    const auto lane = static_cast<std::size_t>(__builtin_ctz(mask));
                    if (limit[lane] < one.worst) continue;  // it has risen since
                    const std::int32_t item = order[panel * CW + v * W + lane];
                    if (one.excludes(item)) continue;
                    const float s = exact_score(q, Y + item * k, k, bias[item]);
                    if (one.admits(s, item)) one.keep(s, item, top);
                }
            }
        }
    });
    for (std::size_t row = 0; row < queries; ++row) {
        auto& kept = found[row * parts].heap;
        for (std::size_t part = 1; part < parts; ++part) {
            const auto& more = found[row * parts + part].heap;
            kept.insert(kept.end(), more.begin(), more.end());
        }
        write_best(kept, top, best + row * top, score + row * top);
    }
}

}  // namespace eckart
