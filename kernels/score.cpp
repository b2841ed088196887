// Predictions for given pairs: score = mean + b_i + c_j + x_i . y_j.
//
// Bandwidth bound: 2 k floats are gathered for 2 k flops. An unknown row or column (-1) contributes nothing.
#include <vector>

#include "dense.h"
#include "kernels.h"
#include "parallel.h"

namespace eckart {

void pair_scores(const float* X, const float* Y, std::size_t k, const float* row_bias, const float* column_bias,
                 float mean, const std::int64_t* i, const std::int64_t* j, std::size_t pairs, float* score,
                 std::size_t threads) {
    constexpr std::size_t chunk = 4096;
    parallel_for(threads, (pairs + chunk - 1) / chunk, [&](std::size_t task, std::size_t) {
        const std::size_t end = std::min(pairs, (task + 1) * chunk), whole = k / W * W;
        for (std::size_t p = task * chunk; p < end; ++p) {
            float total = mean;
            if (i[p] >= 0) total += row_bias[i[p]];
            if (j[p] >= 0) total += column_bias[j[p]];
            if (i[p] >= 0 && j[p] >= 0) {
                const float *x = X + i[p] * k, *y = Y + j[p] * k;
                float product = dot(x, y, whole);
                for (std::size_t f = whole; f < k; ++f) product += x[f] * y[f];
                total += product;
            }
            score[p] = total;
        }
    });
}

}  // namespace eckart
