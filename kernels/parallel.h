// Independent tasks over threads: each worker takes the next task when it is free.
//
// A task writes only what is its own, so the result does not depend on the number of threads or on who took
// what. The caller has released the GIL; nothing here touches Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace eckart {

// Calls body(task, worker) for each task in [0, tasks); worker < threads names the scratch it may use.
// body must not throw.
template <class Body>
void parallel_for(std::size_t threads, std::size_t tasks, const Body& body) {
    threads = std::max<std::size_t>(1, std::min(threads, tasks));
    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t worker) {
        for (std::size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task, worker);
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (std::size_t worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
    } catch (...) {
        // The system gives no more threads: those that are there do all tasks, to the same bits.
    }
    work(0);
    for (auto& thread : others) thread.join();
}

// The lowest of the rows that failed, whichever worker met it: the report does not depend on threads either.
class FirstFailure {
    std::atomic<std::int64_t> lowest{INT64_MAX};

  public:
    void add(std::int64_t row) {
        std::int64_t least = lowest.load();
        while (row < least && !lowest.compare_exchange_weak(least, row)) {
        }
    }
    std::int64_t row_or_none() const { return lowest == INT64_MAX ? -1 : lowest.load(); }
};

// Rows of a CSR matrix as tasks of about equal cost. Rows that are a task of their own come first, so that none of them
// is left to the end; the others follow as they lie in memory, which their entries are then read through in order.
struct RowTasks {
    std::vector<std::int64_t> order;  // rows
    std::vector<std::size_t> start;   // task t is order[start[t]] .. order[start[t + 1]]

    // cost(n): what a row of n entries costs, in any unit; it balances tasks and need not be exact.
    template <class Cost>
    RowTasks(const std::int64_t* indptr, std::size_t rows, std::size_t threads, const Cost& cost) : order(rows) {
        std::vector<float> costs(rows);
        double total = 0;
        for (std::size_t row = 0; row < rows; ++row)
            total += costs[row] = static_cast<float>(cost(static_cast<std::size_t>(indptr[row + 1] - indptr[row])));
        const double share = total / (64. * static_cast<double>(threads));
        std::iota(order.begin(), order.end(), 0);
        const auto rest =
            std::stable_partition(order.begin(), order.end(), [&](auto row) { return costs[row] >= share; });
        std::stable_sort(order.begin(), rest, [&](auto a, auto b) { return costs[a] > costs[b]; });
        start.push_back(0);
        double here = 0;
        for (std::size_t i = 0; i < rows; ++i) {
            here += costs[order[i]];
            if (here >= share || i + 1 == rows) {
                start.push_back(i + 1);
                here = 0;
            }
        }
    }
    std::size_t count() const { return start.size() - 1; }
};

}  // namespace eckart
