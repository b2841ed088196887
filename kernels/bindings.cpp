// Arrays in, arrays out: every shape, bound and index is checked here, once, before a loop sees it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace eckart;

namespace {

template <class T, std::size_t n>
using In = nb::ndarray<const T, nb::ndim<n>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::c_contig>;

void require(bool holds, const char* format, ...) {
    if (holds) return;
    char message[256];
    va_list values;
    va_start(values, format);
    std::vsnprintf(message, sizeof message, format, values);
    va_end(values);
    throw nb::value_error(message);
}

// Aligned to a cache line, so that a row of factors is read in as few as it can be; a large array to a large page, and
// in such where the system has them: rows are read in random order, and each would need its own entry of the page
// table.
void* allocate(std::size_t bytes) {
    constexpr std::size_t line = 64, large_page = std::size_t{1} << 21;
    const std::size_t unit = bytes < 2 * large_page ? line : large_page;
    const std::size_t size = std::max(unit, (bytes + unit - 1) / unit * unit);
    void* data = std::aligned_alloc(unit, size);
    if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (unit == large_page) madvise(data, size, MADV_HUGEPAGE);  // advice: nothing is lost where it is refused
#endif
    return data;
}

template <class T>
Out<T> empty(std::size_t rows, std::size_t columns = 0) {
    T* data = static_cast<T*>(allocate((columns ? rows * columns : rows) * sizeof(T)));
    nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    if (columns) return Out<T>(data, {rows, columns}, owner);
    return Out<T>(data, {rows}, owner);
}

std::size_t checked_threads(int threads) {
    require(threads >= 1 && threads <= 4096, "threads is %d, expected 1 to 4096", threads);
    return static_cast<std::size_t>(threads);
}

void check_sparse(const In<std::int64_t, 1>& indptr, const In<std::int32_t, 1>& indices, std::size_t columns) {
    require(indptr.size() >= 1, "indptr is empty");
    const std::int64_t *p = indptr.data(), entries = static_cast<std::int64_t>(indices.size());
    const std::size_t rows = indptr.size() - 1;
    require(p[0] == 0 && p[rows] == entries, "indptr runs from %lld to %lld over %lld entries",
            static_cast<long long>(p[0]), static_cast<long long>(p[rows]), static_cast<long long>(entries));
    bool ascending = true;
    for (std::size_t row = 0; row < rows; ++row) ascending &= p[row] <= p[row + 1];
    require(ascending, "indptr descends");
    std::uint32_t largest = 0;  // a negative index is a huge one
    for (std::int64_t t = 0; t < entries; ++t)
        largest = std::max(largest, static_cast<std::uint32_t>(indices.data()[t]));
    require(!entries || largest < columns, "column index %d is outside 0..%zu", static_cast<std::int32_t>(largest),
            columns ? columns - 1 : 0);
}

void check_order(const In<std::int32_t, 1>& order, std::size_t items) {
    require(order.size() == items, "%zu places in the order of %zu items", order.size(), items);
    std::uint32_t largest = 0;
    for (std::size_t t = 0; t < items; ++t) largest = std::max(largest, static_cast<std::uint32_t>(order.data()[t]));
    require(!items || largest < items, "item %d of the order is outside 0..%zu", static_cast<std::int32_t>(largest),
            items ? items - 1 : 0);
}

Sparse sparse(const In<std::int64_t, 1>& indptr, const In<std::int32_t, 1>& indices, const In<float, 1>& values,
              std::size_t columns) {
    check_sparse(indptr, indices, columns);
    require(values.size() == indices.size(), "%zu values for %zu entries", values.size(), indices.size());
    return {indptr.data(), indices.data(), values.data(), indptr.size() - 1, columns};
}

Method checked_method(const std::string& name, int steps) {
    require(steps >= 1 && steps <= 1000, "steps is %d, expected 1 to 1000", steps);
    const std::pair<const char*, Method> methods[] = {{"exact", Method::exact},
                                                      {"cg", Method::cg},
                                                      {"block", Method::block},
                                                      {"primal", Method::primal},
                                                      {"dual", Method::dual}};
    for (const auto& [known, method] : methods)
        if (name == known) return method;
    throw nb::value_error(("method is '" + name + "', expected exact, cg, block, primal or dual").c_str());
}

using Start = std::optional<In<float, 2>>;

// X, zero or a copy of where to start.
Out<float> started(const Start& start, std::size_t rows, std::size_t k) {
    require(!start || (start->shape(0) == rows && start->shape(1) == k), "the start is not %zu x %zu", rows, k);
    auto X = empty<float>(rows, k);
    if (start)
        std::copy_n(start->data(), rows * k, X.data());
    else
        std::fill_n(X.data(), rows * k, 0.f);
    return X;
}

RowOptions checked_options(const Sparse& R, std::size_t k, const In<float, 1>& reg,
                           const std::optional<In<float, 1>>& spectrum, const Start& prior, const std::string& method,
                           int steps, int threads) {
    require(k >= 1, "Y has no columns");
    require(reg.size() == R.rows, "%zu values of reg for %zu rows", reg.size(), R.rows);
    require(!spectrum || spectrum->size() == k, "the spectrum has not %zu values", k);
    require(!prior || (prior->shape(0) == R.rows && prior->shape(1) == k), "the prior is not %zu x %zu", R.rows, k);
    return {reg.data(),
            spectrum ? spectrum->data() : nullptr,
            prior ? prior->data() : nullptr,
            checked_method(method, steps),
            static_cast<std::size_t>(steps),
            checked_threads(threads)};
}

// (X, row_bias or zeros, objective, failed row or -1)
auto py_explicit_rows(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> Y,
                      In<float, 1> column_bias, float mean, In<float, 1> reg, int threads,
                      std::optional<In<float, 1>> spectrum, Start prior, bool bias, const std::string& method,
                      int steps, Start start, std::optional<In<float, 1>> start_bias) {
    const Sparse R = sparse(indptr, indices, values, Y.shape(0));
    const std::size_t k = Y.shape(1);
    const RowOptions options = checked_options(R, k, reg, spectrum, prior, method, steps, threads);
    require(column_bias.size() == R.columns, "%zu column biases for %zu columns", column_bias.size(), R.columns);
    require(!start_bias || start_bias->size() == R.rows, "the start has not %zu biases", R.rows);
    auto X = started(start, R.rows, k);
    auto row_bias = empty<float>(R.rows);
    if (start_bias)
        std::copy_n(start_bias->data(), R.rows, row_bias.data());
    else
        std::fill_n(row_bias.data(), R.rows, 0.f);
    auto objective = empty<double>(R.rows);
    std::int64_t failed;
    {
        nb::gil_scoped_release release;
        failed = explicit_rows(R, Y.data(), k, column_bias.data(), mean, options,
                               {X.data(), bias ? row_bias.data() : nullptr, objective.data()});
    }
    return nb::make_tuple(X, row_bias, objective, failed);
}

// (X, objective, failed row or -1)
auto py_implicit_rows(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> Y,
                      float alpha, In<float, 1> reg, int threads, std::optional<In<float, 1>> spectrum, Start prior,
                      const std::string& method, int steps, Start start) {
    const Sparse R = sparse(indptr, indices, values, Y.shape(0));
    const std::size_t k = Y.shape(1);
    const RowOptions options = checked_options(R, k, reg, spectrum, prior, method, steps, threads);
    auto X = started(start, R.rows, k);
    auto objective = empty<double>(R.rows);
    std::int64_t failed;
    {
        nb::gil_scoped_release release;
        failed = implicit_rows(R, Y.data(), k, alpha, options, {X.data(), nullptr, objective.data()});
    }
    return nb::make_tuple(X, objective, failed);
}

double py_row_cost(In<std::int64_t, 1> indptr, int k, const std::string& method, int steps) {
    require(indptr.size() >= 1, "indptr is empty");
    require(k >= 1, "k is %d, expected at least 1", k);
    const std::size_t rows = indptr.size() - 1;
    for (std::size_t row = 0; row < rows; ++row)
        require(indptr.data()[row] <= indptr.data()[row + 1], "indptr descends");
    return row_cost(indptr.data(), rows, static_cast<std::size_t>(k), checked_method(method, steps),
                    static_cast<std::size_t>(steps));
}

// (X, failed row or -1)
auto py_posterior_rows(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> Y,
                       float alpha, In<float, 2> precision, In<float, 2> prior, std::optional<In<float, 2>> noise,
                       int threads) {
    const Sparse R = sparse(indptr, indices, values, Y.shape(0));
    const std::size_t k = Y.shape(1), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(alpha > 0, "alpha is %g, expected a precision above 0", static_cast<double>(alpha));
    require(precision.shape(0) == k && precision.shape(1) == k, "precision is %zu x %zu, expected %zu x %zu",
            precision.shape(0), precision.shape(1), k, k);
    require(prior.shape(0) == R.rows && prior.shape(1) == k, "prior is %zu x %zu, expected %zu x %zu", prior.shape(0),
            prior.shape(1), R.rows, k);
    require(!noise || (noise->shape(0) == R.rows && noise->shape(1) == k), "noise is not %zu x %zu", R.rows, k);
    auto X = empty<float>(R.rows, k);
    std::int64_t failed;
    {
        nb::gil_scoped_release release;
        failed = posterior_rows(R, Y.data(), k, alpha, precision.data(), prior.data(), noise ? noise->data() : nullptr,
                                X.data(), workers);
    }
    return nb::make_tuple(X, failed);
}

// (spread, failed row or -1)
auto py_posterior_spread(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> Y,
                         float alpha, In<float, 2> precision, In<std::int64_t, 1> target_indptr,
                         In<std::int32_t, 1> targets, int threads) {
    const Sparse R = sparse(indptr, indices, values, Y.shape(0));
    const std::size_t k = Y.shape(1), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(alpha > 0, "alpha is %g, expected a precision above 0", static_cast<double>(alpha));
    require(precision.shape(0) == k && precision.shape(1) == k, "precision is %zu x %zu, expected %zu x %zu",
            precision.shape(0), precision.shape(1), k, k);
    require(target_indptr.size() == R.rows + 1, "targets of %zu rows, expected %zu", target_indptr.size() - 1, R.rows);
    check_sparse(target_indptr, targets, Y.shape(0));
    const Sparse asked{target_indptr.data(), targets.data(), nullptr, R.rows, Y.shape(0)};
    auto spread = empty<float>(targets.size());
    std::int64_t failed;
    {
        nb::gil_scoped_release release;
        failed = posterior_spread(R, Y.data(), k, alpha, precision.data(), asked, spread.data(), workers);
    }
    return nb::make_tuple(spread, failed);
}

// (E, B) after one pass
auto py_sample_link(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> E,
                    In<float, 2> B, float lambda, In<float, 2> noise, int threads) {
    const Sparse by_column = sparse(indptr, indices, values, E.shape(0));
    const std::size_t k = E.shape(1), workers = checked_threads(threads);
    require(k >= 1, "E has no columns");
    require(lambda > 0, "lambda is %g, expected a number above 0", static_cast<double>(lambda));
    require(B.shape(0) == by_column.rows && B.shape(1) == k, "B is %zu x %zu, expected %zu x %zu", B.shape(0),
            B.shape(1), by_column.rows, k);
    require(noise.shape(0) == B.shape(0) && noise.shape(1) == k, "noise is %zu x %zu, expected %zu x %zu",
            noise.shape(0), noise.shape(1), B.shape(0), k);
    auto left = empty<float>(E.shape(0), k);
    auto next = empty<float>(B.shape(0), k);
    std::copy_n(E.data(), E.size(), left.data());
    std::copy_n(B.data(), B.size(), next.data());
    {
        nb::gil_scoped_release release;
        sample_link(by_column, lambda, noise.data(), k, left.data(), next.data(), workers);
    }
    return nb::make_tuple(left, next);
}

auto py_gram(In<float, 2> Y, int threads) {
    const std::size_t k = Y.shape(1), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    auto G = empty<float>(k, k);
    {
        nb::gil_scoped_release release;
        gram(Y.data(), Y.shape(0), k, G.data(), workers);
    }
    return G;
}

auto py_rotate(In<float, 2> Y, In<float, 2> Q, int threads) {
    const std::size_t k = Y.shape(1), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(Q.shape(0) == k && Q.shape(1) == k, "Q is %zu x %zu, expected %zu x %zu", Q.shape(0), Q.shape(1), k, k);
    auto rotated = empty<float>(Y.shape(0), k);
    {
        nb::gil_scoped_release release;
        rotate(Y.data(), Y.shape(0), k, Q.data(), rotated.data(), workers);
    }
    return rotated;
}

auto py_pair_scores(In<float, 2> X, In<float, 2> Y, In<float, 1> row_bias, In<float, 1> column_bias, float mean,
                    In<std::int64_t, 1> rows, In<std::int64_t, 1> columns, int threads) {
    const std::size_t workers = checked_threads(threads), pairs = rows.size();
    require(X.shape(1) == Y.shape(1), "X has %zu columns, Y %zu", X.shape(1), Y.shape(1));
    require(row_bias.size() == X.shape(0), "%zu row biases for %zu rows", row_bias.size(), X.shape(0));
    require(column_bias.size() == Y.shape(0), "%zu column biases for %zu columns", column_bias.size(), Y.shape(0));
    require(columns.size() == pairs, "%zu rows and %zu columns, expected as many of each", pairs, columns.size());
    for (std::size_t p = 0; p < pairs; ++p) {
        const std::int64_t i = rows.data()[p], j = columns.data()[p];
        require(i >= -1 && i < static_cast<std::int64_t>(X.shape(0)), "row %lld is outside -1..%zu",
                static_cast<long long>(i), X.shape(0));
        require(j >= -1 && j < static_cast<std::int64_t>(Y.shape(0)), "column %lld is outside -1..%zu",
                static_cast<long long>(j), Y.shape(0));
    }
    auto score = empty<float>(pairs);
    {
        nb::gil_scoped_release release;
        pair_scores(X.data(), Y.data(), X.shape(1), row_bias.data(), column_bias.data(), mean, rows.data(),
                    columns.data(), pairs, score.data(), workers);
    }
    return score;
}

// (panels, ceilings), see kernels.h
auto py_pack_items(In<float, 2> Y, In<float, 1> bias, In<std::int32_t, 1> order, int threads) {
    const std::size_t k = Y.shape(1), width = panel_width(), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(bias.size() == Y.shape(0), "%zu biases for %zu items", bias.size(), Y.shape(0));
    check_order(order, Y.shape(0));
    const std::size_t panels = (Y.shape(0) + width - 1) / width;
    auto packed = empty<float>(panels * k, width);
    auto ceilings = empty<float>(panels, 2);
    {
        nb::gil_scoped_release release;
        pack_items(Y.data(), Y.shape(0), k, bias.data(), order.data(), packed.data(), ceilings.data(), workers);
    }
    return nb::make_tuple(packed, ceilings);
}

// (items, scores), each queries x top
auto py_top_k(In<float, 2> Q, In<float, 2> packed, In<float, 2> ceilings, In<std::int32_t, 1> order, In<float, 1> bias,
              In<std::int64_t, 1> exclude_indptr, In<std::int32_t, 1> exclude, int top, int threads) {
    const std::size_t queries = Q.shape(0), k = Q.shape(1), items = bias.size(), workers = checked_threads(threads);
    const std::size_t width = panel_width();
    require(k >= 1, "Q has no columns");
    require(top >= 1, "top is %d, expected at least 1", top);
    require(packed.shape(1) == width && packed.shape(0) == (items + width - 1) / width * k,
            "packed items are %zu x %zu, expected %zu x %zu", packed.shape(0), packed.shape(1),
            (items + width - 1) / width * k, width);
    require(ceilings.shape(0) == (items + width - 1) / width && ceilings.shape(1) == 2,
            "ceilings are %zu x %zu, expected %zu x 2", ceilings.shape(0), ceilings.shape(1),
            (items + width - 1) / width);
    check_order(order, items);
    check_sparse(exclude_indptr, exclude, items);
    require(exclude_indptr.size() == queries + 1, "exclusions for %zu queries, expected %zu", exclude_indptr.size() - 1,
            queries);
    auto best = empty<std::int32_t>(queries, top);
    auto score = empty<float>(queries, top);
    {
        nb::gil_scoped_release release;
        top_k(Q.data(), queries, k, packed.data(), ceilings.data(), order.data(), items, bias.data(),
              exclude_indptr.data(), exclude.data(), static_cast<std::size_t>(top), best.data(), score.data(), workers);
    }
    return nb::make_tuple(best, score);
}

template <class T, std::size_t n>
using InOut = nb::ndarray<T, nb::ndim<n>, nb::c_contig, nb::device::cpu>;

SgdGrid sgd_grid(const In<std::int64_t, 1>& rows, const In<std::int64_t, 1>& columns) {
    require(rows.size() >= 2 && rows.size() == columns.size(), "%zu row and %zu column bounds of blocks", rows.size(),
            columns.size());
    for (const auto* bounds : {&rows, &columns}) {
        require(bounds->data()[0] == 0, "the bounds of the blocks do not begin at 0");
        for (std::size_t p = 1; p < bounds->size(); ++p)
            require(bounds->data()[p - 1] <= bounds->data()[p], "the bounds of the blocks descend");
    }
    return {rows.size() - 1, rows.data(), columns.data()};
}

void check_permutation(const In<std::int32_t, 1>& order, std::size_t size, const char* what) {
    require(order.size() == size, "%zu %s, expected %zu", order.size(), what, size);
    std::vector<bool> met(size);
    for (std::size_t t = 0; t < size; ++t) {
        const std::int32_t x = order.data()[t];
        require(x >= 0 && static_cast<std::size_t>(x) < size && !met[x], "%s are not a permutation", what);
        met[x] = true;
    }
}

// (starts, columns, values)
auto py_sgd_layout(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values,
                   In<std::int64_t, 1> row_bounds, In<std::int64_t, 1> column_bounds, In<std::int32_t, 1> row_at,
                   In<std::int32_t, 1> place_of, int threads) {
    const Sparse R = sparse(indptr, indices, values, place_of.size());
    const SgdGrid grid = sgd_grid(row_bounds, column_bounds);
    const std::size_t B = grid.blocks, workers = checked_threads(threads);
    require(static_cast<std::size_t>(grid.rows[B]) == R.rows, "blocks of %lld rows for %zu",
            static_cast<long long>(grid.rows[B]), R.rows);
    require(static_cast<std::size_t>(grid.columns[B]) == R.columns, "blocks of %lld columns for %zu",
            static_cast<long long>(grid.columns[B]), R.columns);
    check_permutation(row_at, R.rows, "rows by place");
    check_permutation(place_of, R.columns, "places of columns");
    auto starts = empty<std::int64_t>(R.rows * B + 1);
    auto columns = empty<std::int32_t>(indices.size());
    auto sorted = empty<float>(indices.size());
    {
        nb::gil_scoped_release release;
        sgd_layout(R, grid, row_at.data(), place_of.data(), starts.data(), columns.data(), sorted.data(), workers);
    }
    return nb::make_tuple(starts, columns, sorted);
}

double py_sgd_epoch(In<std::int64_t, 1> row_bounds, In<std::int64_t, 1> column_bounds, In<std::int64_t, 1> starts,
                    In<std::int32_t, 1> columns, In<float, 1> values, In<std::int32_t, 1> strata, InOut<float, 2> W,
                    InOut<float, 2> H, InOut<float, 2> row_scalars, InOut<float, 2> column_scalars, int k, float mean,
                    float reg, float step, int threads, double negatives, std::uint64_t draw) {
    require(negatives >= 0 && negatives <= 1e4, "negatives is %g, expected 0 to 10000", negatives);
    const SgdGrid grid = sgd_grid(row_bounds, column_bounds);
    const std::size_t B = grid.blocks, workers = checked_threads(threads), width = W.shape(1);
    const std::size_t rows = grid.rows[B], items = grid.columns[B];
    check_permutation(strata, B, "strata");
    require(k >= 1 && width % 16 == 0 && static_cast<std::size_t>(k) <= width && H.shape(1) == width,
            "factors of %zu and %zu columns for k = %d, expected k rounded up to a multiple of 16", width, H.shape(1),
            k);
    require(W.shape(0) == rows && row_scalars.shape(0) == rows && row_scalars.shape(1) == 2,
            "factors and scalars of %zu and %zu rows, expected %zu", W.shape(0), row_scalars.shape(0), rows);
    require(H.shape(0) == items && column_scalars.shape(0) == items && column_scalars.shape(1) == 2,
            "factors and scalars of %zu and %zu columns, expected %zu", H.shape(0), column_scalars.shape(0), items);
    require(starts.size() == rows * B + 1 && values.size() == columns.size(),
            "%zu starts and %zu values for %zu entries", starts.size(), values.size(), columns.size());
    require(starts.data()[0] == 0 && starts.data()[rows * B] == static_cast<std::int64_t>(columns.size()),
            "starts do not span the entries");
    bool sound = true;
    for (std::size_t p = 0, x = 0; p < B; ++p)
        for (std::size_t q = 0; q < B; ++q)
            for (std::int64_t t = grid.rows[p]; t < grid.rows[p + 1]; ++t, ++x)
                sound &= starts.data()[x] <= starts.data()[x + 1];
    require(sound, "starts descend");
    for (std::size_t p = 0, x = 0; p < B; ++p)
        for (std::size_t q = 0; q < B; ++q) {
            const std::int64_t begin = starts.data()[x];
            x += static_cast<std::size_t>(grid.rows[p + 1] - grid.rows[p]);
            for (std::int64_t e = begin; e < starts.data()[x]; ++e)
                sound &= grid.columns[q] <= columns.data()[e] && columns.data()[e] < grid.columns[q + 1];
        }
    require(sound, "a column is outside its block");
    nb::gil_scoped_release release;
    return sgd_epoch(grid, {starts.data(), columns.data(), values.data()}, strata.data(),
                     {W.data(), H.data(), width, row_scalars.data(), column_scalars.data()},
                     static_cast<std::size_t>(k), mean, reg, step, negatives, draw, workers);
}

// (X, failed row or -1)
auto py_logistic_rows(In<std::int64_t, 1> indptr, In<std::int32_t, 1> indices, In<float, 1> values, In<float, 2> Y,
                      In<float, 1> column_bias, In<float, 1> cell, In<float, 1> reg, int steps, int threads) {
    const Sparse R = sparse(indptr, indices, values, Y.shape(0));
    const std::size_t k = Y.shape(1), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(steps >= 1, "steps is %d, expected at least 1", steps);
    require(column_bias.size() == R.columns, "%zu column biases for %zu columns", column_bias.size(), R.columns);
    require(cell.size() == R.rows && reg.size() == R.rows, "%zu cell weights and %zu penalties for %zu rows",
            cell.size(), reg.size(), R.rows);
    auto X = empty<float>(R.rows, k);
    std::int64_t failed;
    {
        nb::gil_scoped_release release;
        failed = logistic_rows(R, Y.data(), k, column_bias.data(), cell.data(), reg.data(),
                               static_cast<std::size_t>(steps), X.data(), workers);
    }
    return nb::make_tuple(X, failed);
}

// (codes, bounds, whether the bounds hold)
auto py_pack_codes(In<float, 2> Y, In<float, 1> bias, In<std::int32_t, 1> order, int threads) {
    const std::size_t k = Y.shape(1), width = code_width(), workers = checked_threads(threads);
    require(k >= 1, "Y has no columns");
    require(bias.size() == Y.shape(0), "%zu biases for %zu items", bias.size(), Y.shape(0));
    check_order(order, Y.shape(0));
    const std::size_t panels = (Y.shape(0) + width - 1) / width;
    auto codes = empty<std::int8_t>(panels * k, width);
    auto bounds = empty<float>(panels * code_bounds(), width);
    bool sound;
    {
        nb::gil_scoped_release release;
        sound = pack_codes(Y.data(), Y.shape(0), k, bias.data(), order.data(), codes.data(), bounds.data(), workers);
    }
    return nb::make_tuple(codes, bounds, sound);
}

// (items, scores), each queries x top
auto py_top_one(In<float, 2> Q, In<float, 2> Y, In<std::int8_t, 2> codes, In<float, 2> bounds,
                In<std::int32_t, 1> order, In<float, 1> bias, In<std::int64_t, 1> exclude_indptr,
                In<std::int32_t, 1> exclude, int top, int threads) {
    const std::size_t queries = Q.shape(0), k = Q.shape(1), items = bias.size(), workers = checked_threads(threads);
    const std::size_t width = code_width(), panels = (items + width - 1) / width;
    require(k >= 1, "Q has no columns");
    require(top >= 1, "top is %d, expected at least 1", top);
    require(Y.shape(0) == items && Y.shape(1) == k, "items are %zu x %zu, expected %zu x %zu", Y.shape(0), Y.shape(1),
            items, k);
    require(codes.shape(1) == width && codes.shape(0) == panels * k, "codes are %zu x %zu, expected %zu x %zu",
            codes.shape(0), codes.shape(1), panels * k, width);
    require(bounds.shape(1) == width && bounds.shape(0) == panels * code_bounds(),
            "bounds are %zu x %zu, expected %zu x %zu", bounds.shape(0), bounds.shape(1), panels * code_bounds(),
            width);
    check_order(order, items);
    check_sparse(exclude_indptr, exclude, items);
    require(exclude_indptr.size() == queries + 1, "exclusions for %zu queries, expected %zu", exclude_indptr.size() - 1,
            queries);
    auto best = empty<std::int32_t>(queries, top);
    auto score = empty<float>(queries, top);
    {
        nb::gil_scoped_release release;
        top_one(Q.data(), queries, k, Y.data(), codes.data(), bounds.data(), order.data(), items, bias.data(),
                exclude_indptr.data(), exclude.data(), static_cast<std::size_t>(top), best.data(), score.data(),
                workers);
    }
    return nb::make_tuple(best, score);
}

#if defined(__x86_64__)
// Instruction sets of eckart's builds that this processor runs, best last.
std::vector<const char*> supported() {
    __builtin_cpu_init();
    std::vector<const char*> names{"x86_64"};
    if (__builtin_cpu_supports("x86-64-v3")) names.push_back("avx2");
    if (__builtin_cpu_supports("x86-64-v4")) names.push_back("avx512");
    return names;
}
#else
std::vector<const char*> supported() { return {ECKART_ISA}; }
#endif

}  // namespace

NB_MODULE(ECKART_MODULE, module) {
    using namespace nb::literals;
    module.attr("isa") = ECKART_ISA;
    module.attr("panel_width") = panel_width();
    module.attr("code_width") = code_width();
    module.def("supported", [] {
        nb::list names;
        for (const char* name : supported()) names.append(name);
        return names;
    });
    module.def("explicit_rows", &py_explicit_rows, "indptr"_a, "indices"_a, "values"_a, "Y"_a, "column_bias"_a,
               "mean"_a, "reg"_a, "threads"_a = 1, "spectrum"_a = nb::none(), "prior"_a = nb::none(), "bias"_a = true,
               "method"_a = "exact", "steps"_a = 1, "start"_a = nb::none(), "start_bias"_a = nb::none());
    module.def("implicit_rows", &py_implicit_rows, "indptr"_a, "indices"_a, "values"_a, "Y"_a, "alpha"_a, "reg"_a,
               "threads"_a = 1, "spectrum"_a = nb::none(), "prior"_a = nb::none(), "method"_a = "exact", "steps"_a = 1,
               "start"_a = nb::none());
    module.def("row_cost", &py_row_cost, "indptr"_a, "k"_a, "method"_a, "steps"_a);
    module.def("posterior_rows", &py_posterior_rows, "indptr"_a, "indices"_a, "values"_a, "Y"_a, "alpha"_a,
               "precision"_a, "prior"_a, "noise"_a.none(), "threads"_a = 1);
    module.def("posterior_spread", &py_posterior_spread, "indptr"_a, "indices"_a, "values"_a, "Y"_a, "alpha"_a,
               "precision"_a, "target_indptr"_a, "targets"_a, "threads"_a = 1);
    module.def("sample_link", &py_sample_link, "indptr"_a, "indices"_a, "values"_a, "E"_a, "B"_a, "lambda_"_a,
               "noise"_a, "threads"_a = 1);
    module.def("gram", &py_gram, "Y"_a, "threads"_a = 1);
    module.def("rotate", &py_rotate, "Y"_a, "Q"_a, "threads"_a = 1);
    module.def("sgd_layout", &py_sgd_layout, "indptr"_a, "indices"_a, "values"_a, "row_bounds"_a, "column_bounds"_a,
               "row_at"_a, "place_of"_a, "threads"_a = 1);
    module.def("sgd_epoch", &py_sgd_epoch, "row_bounds"_a, "column_bounds"_a, "starts"_a, "columns"_a, "values"_a,
               "strata"_a, "W"_a, "H"_a, "row_scalars"_a, "column_scalars"_a, "k"_a, "mean"_a, "reg"_a, "step"_a,
               "threads"_a = 1, "negatives"_a = 0.0, "draw"_a = 0);
    module.def("logistic_rows", &py_logistic_rows, "indptr"_a, "indices"_a, "values"_a, "Y"_a, "column_bias"_a,
               "cell"_a, "reg"_a, "steps"_a, "threads"_a = 1);
    module.def("pair_scores", &py_pair_scores, "X"_a, "Y"_a, "row_bias"_a, "column_bias"_a, "mean"_a, "rows"_a,
               "columns"_a, "threads"_a = 1);
    module.def("pack_items", &py_pack_items, "Y"_a, "bias"_a, "order"_a, "threads"_a = 1);
    module.def("pack_codes", &py_pack_codes, "Y"_a, "bias"_a, "order"_a, "threads"_a = 1);
    module.def("top_one", &py_top_one, "Q"_a, "Y"_a, "codes"_a, "bounds"_a, "order"_a, "bias"_a, "exclude_indptr"_a,
               "exclude"_a, "top"_a, "threads"_a = 1);
    module.def("top_k", &py_top_k, "Q"_a, "packed"_a, "ceilings"_a, "order"_a, "bias"_a, "exclude_indptr"_a,
               "exclude"_a, "top"_a, "threads"_a = 1);
}
