// The kept items of one query: a heap whose top is the worst of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace eckart {

// a < b: a is the better one. Higher scores first, and among equals the lower item: no two items are equal.
struct Kept {
    float score;
    std::int32_t item;
    bool operator<(const Kept& other) const {
        return score > other.score || (score == other.score && item < other.item);
    }
};

struct Query {
    std::vector<Kept> heap;
    float worst = -std::numeric_limits<float>::infinity();  // a score must reach this to be kept,
    float below = -std::numeric_limits<float>::infinity();  // that is exceed this
    const std::int32_t *excluded = nullptr, *excluded_end = nullptr;

    void begin(const std::int32_t* first_excluded, const std::int32_t* end_excluded) {
        heap.clear();
        worst = below = -std::numeric_limits<float>::infinity();
        excluded = first_excluded;
        excluded_end = end_excluded;
    }

    bool excludes(std::int32_t item) const { return std::binary_search(excluded, excluded_end, item); }

    // Whether the item gets in.
    bool admits(float score, std::int32_t item) const {
        if (score != worst) return score > worst;
        return worst > -std::numeric_limits<float>::infinity() && item < heap.front().item;  // so it is full
    }

    void keep(float score, std::int32_t item, std::size_t top) {
        if (heap.size() == top) {
            std::pop_heap(heap.begin(), heap.end());
            heap.pop_back();
        }
        heap.push_back({score, item});
        std::push_heap(heap.begin(), heap.end());
        if (heap.size() == top) {
            worst = heap.front().score;
            below = std::nextafter(worst, -std::numeric_limits<float>::infinity());
        }
    }
};

// Writes the best `top` of `kept`, which is sorted; slots left over hold item -1, score -inf.
inline void write_best(std::vector<Kept>& kept, std::size_t top, std::int32_t* best, float* score) {
    std::sort(kept.begin(), kept.end());
    for (std::size_t j = 0; j < top; ++j) {
        const bool there = j < kept.size();
        best[j] = there ? kept[j].item : -1;
        score[j] = there ? kept[j].score : -std::numeric_limits<float>::infinity();
    }
}

}  // namespace eckart
