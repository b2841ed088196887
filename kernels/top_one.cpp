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
// Bounds are enlarged by what float32 can round (ceiling.h), so no item is ever missed.
#include <cmath>

#include "ceiling.h"
#include "kept.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace eckart {
namespace {

constexpr std::size_t CV = 4;                // vectors of a panel: as many sums at once hide the latency of each
constexpr std::size_t CW = CV * W;           // at 16 lanes, a factor of a panel is one cache line
constexpr std::size_t part_bytes = 2 << 20;  // codes that are worth starting a thread for: about 0.1 ms

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
        Ceiling panel_ceiling;
        for (std::size_t j = 0; j < CW; ++j) {
            const std::size_t place = panel * CW + j, item = place < items ? order[place] : items;
            double largest = 0, error = 0;
            const float* y = Y + item * k;
            const double norm = item < items ? norm_of(y, k) : 0;
            const bool fit = item < items && fits(norm, bias[item]);
            if (item < items && !fit) sound.store(false, std::memory_order_relaxed);
            for (std::size_t f = 0; fit && f < k; ++f) largest = std::max<double>(largest, std::fabs(y[f]));
            scale[j] = fit ? static_cast<float>(largest / 127) : 0;
            for (std::size_t f = 0; f < k; ++f) {
                const double z = scale[j] > 0 ? std::nearbyint(static_cast<double>(y[f]) / scale[j]) : 0;
                code[f * CW + j] = static_cast<std::int8_t>(std::min(127., std::max(-127., z)));
                const double e = fit ? y[f] - static_cast<double>(scale[j]) * code[f * CW + j] : 0;
                error += e * e;
            }
            error = std::sqrt(error);
            slack[j] = rounded_up((error + slack_of(k) * (norm + error)) * (1 + 16 * unit));
            shift[j] = fit ? shift_of(bias[item]) : -std::numeric_limits<float>::infinity();
            if (item < items) panel_ceiling.cover(norm, bias[item], k);
        }
        std::fill(ceiling, ceiling + CW, 0.f);  // one of the panel: [0] a norm, [1] a shift
        ceiling[0] = panel_ceiling.norm;
        ceiling[1] = panel_ceiling.shift;
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
        const float length = rounded_up(norm_of(q, k));
        for (std::size_t panel = part; panel < panels; panel += parts) {
            const std::int8_t* code = codes + panel * k * CW;
            const float* bound = bounds + panel * 4 * CW;
            if (Ceiling{bound[3 * CW], bound[3 * CW + 1]}.below(one.worst, length)) continue;
            vec dot[CV] = {};
            for (std::size_t f = 0; f < k; ++f)
#pragma GCC unroll 4
                for (std::size_t v = 0; v < CV; ++v) dot[v] += q[f] * load_bytes(code + f * CW + v * W);
            for (std::size_t v = 0; v < CV; ++v) {
                const vec rest = load(bound + 2 * CW + v * W) + length * load(bound + CW + v * W);
                const vec limit = dot[v] * load(bound + v * W) + rest;
                for (std::uint32_t mask = greater(limit, broadcast(one.below)); mask; mask &= mask - 1) {
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
