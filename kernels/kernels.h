// The loops, on raw arrays. Shapes and bounds are the caller's business: bindings.cpp checks them once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace eckart {

// Observed entries of a rows x columns matrix, by row.
struct Sparse {
    const std::int64_t* indptr;  // rows + 1
    const std::int32_t* indices;
    const float* values;
    std::size_t rows;
    std::size_t columns;
};

// How rows are solved: to the optimum, or improved from where they stand by `steps` steps of conjugate gradients or
// sweeps of block coordinate descent (where that is less work than the optimum). Exact rows are primal or dual,
// whichever takes less; the two can be forced, to compare them (a dual needs fewer entries than factors).
enum class Method { exact, cg, block, primal, dual };

struct RowOptions {
    const float* reg;       // rows
    const float* spectrum;  // k, or null: the diagonal quadratic term that all rows share
    const float* prior;     // rows x k, or null: where each row is pulled to
    Method method;
    std::size_t steps;
    std::size_t threads;
};

struct RowResults {
    float* X;           // rows x k; holds the start when the method is not exact
    float* bias;        // rows; null: no biases
    double* objective;  // rows: the value reached
};

// Half-sweeps of ALS; see rows.h for the equations. Return the first row whose system is not positive definite in
// float32, or -1.
std::int64_t explicit_rows(const Sparse& R, const float* Y, std::size_t k, const float* column_bias, float mean,
                           const RowOptions& options, const RowResults& results);
std::int64_t implicit_rows(const Sparse& R, const float* Y, std::size_t k, float alpha, const RowOptions& options,
                           const RowResults& results);

// Nanoseconds, about, that a half-sweep over rows of these lengths takes one thread.
double row_cost(const std::int64_t* indptr, std::size_t rows, std::size_t k, Method method, std::size_t steps);

// Draws of a Gibbs sweep; see posterior.cpp. X[row] is one from the row's posterior, its mean where `noise` is null;
// returns the first row whose precision is not positive definite in float32, or -1. `by_column` holds the entries of F
// by its columns; E (by_column.columns x k) and B (by_column.rows x k) are replaced by those of the next draw.
std::int64_t posterior_rows(const Sparse& R, const float* Y, std::size_t k, float alpha, const float* precision,
                            const float* prior, const float* noise, float* X, std::size_t threads);
// spread[t] = y^T A^-1 y for the targets of each row (of as many rows, with no values): the variance of a row's scores.
std::int64_t posterior_spread(const Sparse& R, const float* Y, std::size_t k, float alpha, const float* precision,
                              const Sparse& targets, float* spread, std::size_t threads);
void sample_link(const Sparse& by_column, float lambda, const float* noise, std::size_t k, float* E, float* B,
                 std::size_t threads);

// G = Y^T Y (k x k, full), rows of Y summed in fixed blocks.
void gram(const float* Y, std::size_t rows, std::size_t k, float* G, std::size_t threads);

// out = Y Q, Q k x k.
void rotate(const float* Y, std::size_t rows, std::size_t k, const float* Q, float* out, std::size_t threads);

// score[p] = mean + row_bias[i] + column_bias[j] + X[i] . Y[j] for pairs (i, j); -1 stands for "no such row".
void pair_scores(const float* X, const float* Y, std::size_t k, const float* row_bias, const float* column_bias,
                 float mean, const std::int64_t* i, const std::int64_t* j, std::size_t pairs, float* score,
                 std::size_t threads);

// Items in the layout top_k reads: panels of panel_width() items in the order given, factor by factor, and two floats a
// panel that say how high its scores can be while no bias is raised (ceiling.h).
std::size_t panel_width();
void pack_items(const float* Y, std::size_t items, std::size_t k, const float* bias, const std::int32_t* order,
                float* packed, float* ceilings, std::size_t threads);

// The best `top` items of each query by Q[q] . Y[j] + bias[j], less the excluded ones; ties go to the lower j.
// Slots left over hold item -1, score -inf.
void top_k(const float* Q, std::size_t queries, std::size_t k, const float* packed, const float* ceilings,
           const std::int32_t* order, std::size_t items, const float* bias, const std::int64_t* exclude_indptr,
           const std::int32_t* exclude, std::size_t top, std::int32_t* best, float* score, std::size_t threads);

// Stratified SGD; see sgd.cpp. A B x B grid over places, which rows and columns are dealt to.
struct SgdGrid {
    std::size_t blocks;           // B
    const std::int64_t* rows;     // block row p holds the places rows[p] .. rows[p + 1]; B + 1
    const std::int64_t* columns;  // B + 1
};
// Entries by block row, then block column, then place of the row, then of the column.
struct SgdEntries {
    // Of the t-th of a block row's `height` rows, from the block row's own part: [q * height + t]; rows * B + 1 in all.
    const std::int64_t* starts;
    const std::int32_t* columns;  // places
    const float* values;
};
struct SgdModel {
    float *W, *H;  // by place, `width` floats each: k and zeros up to a multiple of 16
    std::size_t width;
    float *row_scalars, *column_scalars;  // by place: (bias, sum of squared errors)
};
void sgd_layout(const Sparse& R, const SgdGrid& grid, const std::int32_t* row_at, const std::int32_t* place_of,
                std::int64_t* starts, std::int32_t* columns, float* values, std::size_t threads);
// One pass, in place; returns the sum of the losses, each before its update. With `negatives` above 0 the loss is the
// logistic one, and about so many cells of value 0 are drawn per entry by a hash of `draw`.
double sgd_epoch(const SgdGrid& grid, const SgdEntries& entries, const std::int32_t* strata, const SgdModel& model,
                 std::size_t k, float mean, float reg, float step, double negatives, std::uint64_t draw,
                 std::size_t threads);
// Users of the logistic loss, in so many steps from 0; see logistic_rows.cpp. `cell` and `reg` hold a weight a row.
// Returns the first row that fails in float32, or -1.
std::int64_t logistic_rows(const Sparse& R, const float* Y, std::size_t k, const float* column_bias, const float* cell,
                           const float* reg, std::size_t steps, float* X, std::size_t threads);
// Items as bytes, in panels of code_width() items, with code_bounds() rows of bounds a panel; place t holds item
// order[t]. See top_one.cpp. False where the bounds would not hold, because a factor or a bias is huge or not finite.
std::size_t code_width();
std::size_t code_bounds();
bool pack_codes(const float* Y, std::size_t items, std::size_t k, const float* bias, const std::int32_t* order,
                std::int8_t* codes, float* bounds, std::size_t threads);

// What top_k gives, to the bit, by reading the codes instead of the items: for few queries. Each |Q[q]| is below 1e15
// and no bias above the one that was packed.
void top_one(const float* Q, std::size_t queries, std::size_t k, const float* Y, const std::int8_t* codes,
             const float* bounds, const std::int32_t* order, std::size_t items, const float* bias,
             const std::int64_t* exclude_indptr, const std::int32_t* exclude, std::size_t top, std::int32_t* best,
             float* score, std::size_t threads);

}  // namespace eckart
