// The best items of each query, scored and selected in one pass: no queries x items array, ever.
//
// Items lie in panels of 2 W, factor by factor, so that one register tile scores MR queries against 2 W items
// at matrix-product speed. A score leaves the registers only when it reaches its query's worst kept one. Panels are in
// an order of the caller's, large norms and biases first: then the worst kept score is soon high, few scores leave, and
// a panel is passed over by all MR queries that its ceiling (ceiling.h) is too low for. Ties go to the lower item
// whatever the order, the batch and the threads, because an item with the worst's own score is still compared.
#include <algorithm>
#include <utility>

#include "ceiling.h"
#include "dense.h"
#include "kept.h"
#include "kernels.h"
#include "parallel.h"

namespace eckart {
namespace {

constexpr std::size_t NR = 2 * W;
constexpr std::size_t group = 8 * MR;  // queries of a task: a panel in the first-level cache serves them all

}  // namespace

std::size_t panel_width() { return NR; }

void pack_items(const float* Y, std::size_t items, std::size_t k, const float* bias, const std::int32_t* order,
                float* packed, float* ceilings, std::size_t threads) {
    parallel_for(threads, (items + NR - 1) / NR, [&](std::size_t panel, std::size_t) {
        const std::size_t first = panel * NR, here = std::min(NR, items - first);
        Ceiling ceiling;
        std::fill(packed + panel * k * NR, packed + (panel + 1) * k * NR, 0.f);
        for (std::size_t j = 0; j < here; ++j) {
            const auto item = static_cast<std::size_t>(order[first + j]);
            for (std::size_t f = 0; f < k; ++f) packed[(panel * k + f) * NR + j] = Y[item * k + f];
            ceiling.cover(norm_of(Y + item * k, k), bias[item], k);
        }
        ceilings[2 * panel] = ceiling.norm;
        ceilings[2 * panel + 1] = ceiling.shift;
    });
}

void top_k(const float* Q, std::size_t queries, std::size_t k, const float* packed, const float* ceilings,
           const std::int32_t* order, std::size_t items, const float* bias, const std::int64_t* exclude_indptr,
           const std::int32_t* exclude, std::size_t top, std::int32_t* best, float* score, std::size_t threads) {
    const std::size_t tasks = (queries + group - 1) / group, panels = (items + NR - 1) / NR;
    threads = std::max<std::size_t>(1, std::min(threads, tasks));
    struct Scratch {
        std::vector<Query> query;
        std::vector<float> packed, norm;
    };
    std::vector<Scratch> scratch(threads);
    for (auto& s : scratch) {
        s.query.resize(group);
        for (auto& q : s.query) q.heap.reserve(std::min(top, items) + 1);
        s.packed.resize(group * k);
        s.norm.resize(group);
    }
    parallel_for(threads, tasks, [&](std::size_t task, std::size_t worker) {
        const std::size_t first = task * group, here = std::min(group, queries - first);
        auto& [query, q_packed, norm] = scratch[worker];
        std::fill(q_packed.begin(), q_packed.end(), 0.f);
        for (std::size_t q = 0; q < here; ++q) {
            query[q].begin(exclude + exclude_indptr[first + q], exclude + exclude_indptr[first + q + 1]);
            norm[q] = rounded_up(norm_of(Q + (first + q) * k, k));
            for (std::size_t f = 0; f < k; ++f) q_packed[(q / MR * k + f) * MR + q % MR] = Q[(first + q) * k + f];
        }
        for (std::size_t panel = 0; panel < panels; ++panel) {
            const Ceiling ceiling{ceilings[2 * panel], ceilings[2 * panel + 1]};
            vec shift[2];
            std::uint32_t there[2];  // lanes that are items
            bool read = false;
            for (std::size_t q0 = 0; q0 < here; q0 += MR) {
                const std::size_t rows = std::min(MR, here - q0);
                bool below = true;
                for (std::size_t q = q0; q < q0 + rows; ++q) below &= ceiling.below(query[q].worst, norm[q]);
                if (below) continue;
                if (!std::exchange(read, true))
                    for (std::size_t v = 0; v < 2; ++v) {
                        const std::size_t item = panel * NR + v * W,
                                          lanes = item < items ? std::min(W, items - item) : 0;
                        shift[v] = vec{};
                        for (std::size_t j = 0; j < lanes; ++j) shift[v][j] = bias[order[item + j]];
                        there[v] = (1u << lanes) - 1;
                    }
                vec acc[MR][2];
                tile<2>(&q_packed[q0 * k], MR, packed + panel * k * NR, NR, k, acc);
                for (std::size_t q = 0; q < rows; ++q) {
                    Query& one = query[q0 + q];
                    for (std::size_t v = 0; v < 2; ++v) {
                        const vec s = acc[q][v] + shift[v];
                        std::uint32_t mask = greater(s, broadcast(one.below)) & there[v];
                        for (; mask; mask &= mask - 1) {
                            const auto j = static_cast<std::size_t>(__builtin_ctz(mask));
                            const std::int32_t found = order[panel * NR + v * W + j];
                            if (one.admits(s[j], found) && !one.excludes(found)) one.keep(s[j], found, top);
                        }
                    }
                }
            }
        }
        for (std::size_t q = 0; q < here; ++q)
            write_best(query[q].heap, top, best + (first + q) * top, score + (first + q) * top);
    });
}

}  // namespace eckart
