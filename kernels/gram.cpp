// The Gramian of a tall matrix, and the matrix in another basis.
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace eckart {
namespace {

// out[0, n) = Y's rows [from, from + n), widened to kp floats each.
void widen(const float* Y, std::size_t from, std::size_t n, std::size_t k, std::size_t kp, float* out) {
    for (std::size_t t = 0; t < n; ++t)
        for (std::size_t f = 0; f < kp; f += W) store(out + t * kp + f, load_first(Y + (from + t) * k + f, k - f));
}

}  // namespace

void gram(const float* Y, std::size_t rows, std::size_t k, float* G, std::size_t threads) {
    // Blocks, and the order in which they are added, depend on the sizes alone: 64 at most, fewer where they would
    // take more than 128 MB.
    const std::size_t kp = padded(k), most = std::clamp<std::size_t>((std::size_t{1} << 25) / (kp * kp), 4, 64);
    const std::size_t block = std::max<std::size_t>(1024, (rows + most - 1) / most);
    const std::size_t blocks = (rows + block - 1) / block;
    const std::size_t panel = std::max<std::size_t>(16, Scratch::panel_bytes / (kp * sizeof(float)));
    threads = std::max<std::size_t>(1, std::min(threads, blocks));
    std::vector<float> parts(blocks * kp * kp, 0.f), panels(threads * panel * kp);
    parallel_for(threads, blocks, [&](std::size_t b, std::size_t worker) {
        float* y = &panels[worker * panel * kp];
        const std::size_t end = std::min(rows, (b + 1) * block);
        for (std::size_t from = b * block; from < end; from += panel) {
            const std::size_t n = std::min(panel, end - from);
            widen(Y, from, n, k, kp, y);
            rank_update<Update::add>(&parts[b * kp * kp], kp, y, kp, n, kp);
        }
    });
    for (std::size_t i = 0; i < k; ++i)
        for (std::size_t j = i; j < k; ++j) {
            double total = 0;
            for (std::size_t b = 0; b < blocks; ++b) total += parts[b * kp * kp + i * kp + j];
            G[i * k + j] = G[j * k + i] = static_cast<float>(total);
        }
}

void rotate(const float* Y, std::size_t rows, std::size_t k, const float* Q, float* out, std::size_t threads) {
    const std::size_t kp = padded(k), tasks = (rows + 8 * W - 1) / (8 * W);
    std::vector<float> wide(kp * kp);  // Q's rows, widened
    widen(Q, 0, k, k, kp, wide.data());
    threads = std::max<std::size_t>(1, std::min(threads, tasks));
    std::vector<float> columns(threads * kp * W);  // W rows of Y, factor by factor
    parallel_for(threads, tasks, [&](std::size_t task, std::size_t worker) {
        float* y = &columns[worker * kp * W];
        for (std::size_t from = task * 8 * W; from < std::min(rows, (task + 1) * 8 * W); from += W) {
            const std::size_t n = std::min(W, rows - from);
            for (std::size_t f = 0; f < kp; f += W) {
                vec block[W];
                for (std::size_t q = 0; q < W; ++q)
                    block[q] = q < n ? load_first(Y + (from + q) * k + f, k - f) : vec{};
                transpose(block);
                for (std::size_t q = 0; q < W; ++q) store(y + (f + q) * W, block[q]);
            }
            for (std::size_t i = 0; i < n; i += MR)
                for (std::size_t j = 0; j < k; j += W) {
                    vec sums[MR][1];
                    tile<1>(y + i, W, &wide[j], kp, k, sums);
                    for (std::size_t q = i; q < std::min(n, i + MR); ++q)
                        std::memcpy(out + (from + q) * k + j, &sums[q - i][0], std::min(W, k - j) * sizeof(float));
                }
        }
    });
}

}  // namespace eckart
