// The kernels against the definitions, with no Python: for compilers and processors that the test machine is not.
//
//     make cross                                                     # Arm's NEON, cross-compiled and emulated
//     make cross CROSS=clang++ CROSS_FLAGS=-march=x86-64-v3 EMULATOR=
//
// Exit status 0 when every number is right.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "../../kernels/kernels.h"

using namespace eckart;

// Largest error of the explicit rows' gradient, of the Gramian and of the best score, over a small random problem.
static double worst_error(std::size_t k) {
    std::mt19937 random(static_cast<unsigned>(k));
    std::normal_distribution<float> normal;
    const std::size_t rows = 40, columns = 50;
    const float mean = 3, penalty = 5;
    std::vector<std::int64_t> indptr{0};
    std::vector<std::int32_t> indices;
    std::vector<float> values, Y(columns * k), bias(columns), reg(rows, penalty), X(rows * k), row_bias(rows), G(k * k);
    for (std::size_t u = 0; u < rows; ++u) {
        for (std::size_t t = 0; t < u % 7 * 9; ++t) {
            indices.push_back(static_cast<std::int32_t>(random() % columns));
            values.push_back(static_cast<float>(1 + random() % 5));
        }
        indptr.push_back(static_cast<std::int64_t>(indices.size()));
    }
    for (float& y : Y) y = normal(random) / std::sqrt(static_cast<float>(k));
    for (float& c : bias) c = normal(random);
    const auto score = [&](std::size_t u, std::size_t j) {
        double s = bias[j];
        for (std::size_t f = 0; f < k; ++f) s += static_cast<double>(X[u * k + f]) * Y[j * k + f];
        return s;
    };

    std::vector<double> objective(rows);
    const Sparse R{indptr.data(), indices.data(), values.data(), rows, columns};
    double worst = 0;
    // Every way to the optimum: the gradient there is zero.
    for (const auto& [method, steps] :
         {std::pair{Method::primal, 1}, {Method::dual, 1}, {Method::cg, 500}, {Method::block, 60}}) {
        const RowOptions options{reg.data(), nullptr, nullptr, method, static_cast<std::size_t>(steps), 2};
        if (explicit_rows(R, Y.data(), k, bias.data(), mean, options, {X.data(), row_bias.data(), objective.data()}) !=
            -1)
            return INFINITY;
        for (std::size_t u = 0; u < rows; ++u) {
            std::vector<double> gradient(k + 1, 0);
            for (std::int64_t t = indptr[u]; t < indptr[u + 1]; ++t) {
                const double error = values[t] - mean - row_bias[u] - score(u, indices[t]);
                for (std::size_t f = 0; f < k; ++f) gradient[f] += error * Y[indices[t] * k + f];
                gradient[k] += error;
            }
            for (std::size_t f = 0; f < k; ++f)
                worst = std::max(worst, std::fabs(gradient[f] - penalty * X[u * k + f]));
            worst = std::max(worst, std::fabs(gradient[k] - penalty * row_bias[u]));
        }
    }

    gram(Y.data(), columns, k, G.data(), 2);
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = 0; j < k; ++j) {
            double s = 0;
            for (std::size_t r = 0; r < columns; ++r) s += static_cast<double>(Y[r * k + i]) * Y[r * k + j];
            worst = std::max(worst, std::fabs(s - G[i * k + j]));
        }

    const std::size_t top = 5, width = panel_width();
    std::vector<float> packed((columns + width - 1) / width * k * width), best_score(rows * top);
    std::vector<std::int64_t> none(rows + 1, 0);
    std::vector<std::int32_t> best(rows * top), order(columns);
    std::vector<float> ceilings((columns + width - 1) / width * 2);
    std::iota(order.rbegin(), order.rend(), 0);
    pack_items(Y.data(), columns, k, bias.data(), order.data(), packed.data(), ceilings.data(), 2);
    top_k(X.data(), rows, k, packed.data(), ceilings.data(), order.data(), columns, bias.data(), none.data(), nullptr,
          top, best.data(), best_score.data(), 2);
    for (std::size_t u = 0; u < rows; ++u) {
        double highest = -INFINITY;
        for (std::size_t j = 0; j < columns; ++j) highest = std::max(highest, score(u, j));
        worst = std::max(worst, std::fabs(highest - best_score[u * top]));
        worst = std::max(worst, std::fabs(highest - score(u, best[u * top])));
    }

    // By codes: the same items and the same bits.
    const std::size_t panels = (columns + code_width() - 1) / code_width();
    std::vector<std::int32_t> same(rows * top);
    std::vector<std::int8_t> codes(panels * k * code_width());
    std::vector<float> bounds(panels * code_bounds() * code_width()), same_score(rows * top);
    if (!pack_codes(Y.data(), columns, k, bias.data(), order.data(), codes.data(), bounds.data(), 2)) return INFINITY;
    top_one(X.data(), rows, k, Y.data(), codes.data(), bounds.data(), order.data(), columns, bias.data(), none.data(),
            nullptr, top, same.data(), same_score.data(), 2);
    if (same != best || same_score != best_score) return INFINITY;

    // The mean of a posterior with precision l I, noise of precision 1 and no biases: a ridge row.
    std::vector<float> precision(k * k, 0.f), prior(rows * k, 0.f), P(rows * k), none_bias(columns, 0.f);
    for (std::size_t f = 0; f < k; ++f) precision[f * k + f] = penalty;
    const RowOptions exact{reg.data(), nullptr, nullptr, Method::exact, 1, 2};
    posterior_rows(R, Y.data(), k, 1.f, precision.data(), prior.data(), nullptr, P.data(), 2);
    explicit_rows(R, Y.data(), k, none_bias.data(), 0.f, exact, {X.data(), nullptr, objective.data()});
    for (std::size_t i = 0; i < rows * k; ++i) worst = std::max<double>(worst, std::fabs(P[i] - X[i]));
    return worst;
}

int main() {
    bool good = true;
    for (std::size_t k : {1, 3, 16, 17, 64}) {
        const double worst = worst_error(k);
        good &= worst < 1e-3;
        std::printf("rank %zu: largest error %.1e\n", k, worst);
    }
    std::printf("panels of %zu floats: %s\n", panel_width(), good ? "right" : "WRONG");
    return good ? 0 : 1;
}
