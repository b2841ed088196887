// Small dense algebra for one row's normal equations, in registers and first-level cache.
//
// Symmetric matrices are kept as their upper triangle, row by row: A[i * ld + j], j >= i. Sizes are padded to
// the vector width, the padding rows being those of the identity, so no loop has a tail. One register tile
// serves the rank-k update, the trailing update of the Cholesky factorization and the scoring of top-k.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "simd.h"

namespace eckart {

// acc[i][v] = sum_t a[t * lda + i] * b[t * ldb + v * W ...], t ascending: the order of the sum is fixed.
template <std::size_t NV>
inline void tile(const float* a, std::size_t lda, const float* b, std::size_t ldb, std::size_t n, vec (&acc)[MR][NV]) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (std::size_t v = 0; v < NV; ++v) acc[i][v] = vec{};
    for (std::size_t t = 0; t < n; ++t, a += lda, b += ldb) {
        vec y[NV];
#pragma GCC unroll 2
        for (std::size_t v = 0; v < NV; ++v) y[v] = load(b + v * W);
#pragma GCC unroll 8
        for (std::size_t i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (std::size_t v = 0; v < NV; ++v) acc[i][v] += a[i] * y[v];
    }
}

enum class Update { set, add, subtract };

template <Update how, std::size_t NV>
inline void update_tile(float* A, std::size_t ld, const float* a, const float* b, std::size_t ldy, std::size_t n) {
    vec acc[MR][NV];
    tile<NV>(a, ldy, b, ldy, n, acc);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (std::size_t v = 0; v < NV; ++v) {
            float* p = A + i * ld + v * W;
            if constexpr (how == Update::set) store(p, acc[i][v]);
            if constexpr (how == Update::add) store(p, load(p) + acc[i][v]);
            if constexpr (how == Update::subtract) store(p, load(p) - acc[i][v]);
        }
}

// A = Y^T Y (or +=, -=) on the upper triangle; Y is n x k with rows ldy apart, k a multiple of W. The W x W blocks on
// the diagonal get both triangles.
// Each call sums its n terms from zero before adding them: a long row, added panel by panel, loses no more
// than sqrt(panels) roundings.
template <Update how>
inline void rank_update(float* A, std::size_t ld, const float* Y, std::size_t ldy, std::size_t n, std::size_t k) {
    for (std::size_t i = 0; i < k; i += MR) {
        std::size_t j = i / W * W;
        for (; j + 2 * W <= k; j += 2 * W) update_tile<how, 2>(A + i * ld + j, ld, Y + i, Y + j, ldy, n);
        if (j < k) update_tile<how, 1>(A + i * ld + j, ld, Y + i, Y + j, ldy, n);
    }
}

// y += a x over n floats, n a multiple of W.
inline void axpy(float a, const float* x, float* y, std::size_t n) {
    for (std::size_t j = 0; j < n; j += W) store(y + j, load(y + j) + a * load(x + j));
}

inline float dot(const float* x, const float* y, std::size_t n) {
    vec total{};
    for (std::size_t j = 0; j < n; j += W) total += load(x + j) * load(y + j);
    return sum(total);
}

// The products of W rows of n floats, ld apart, with x: lane i is row i's.
inline vec dots(const float* rows, std::size_t ld, const float* x, std::size_t n) {
    vec s[W] = {};
    for (std::size_t j = 0; j < n; j += W) {
        const vec y = load(x + j);
#pragma GCC unroll 16
        for (std::size_t i = 0; i < W; ++i) s[i] += load(rows + i * ld + j) * y;
    }
    return lane_sums(s);
}

// out += Y^T a: the weighted sum of n rows of k floats, k a multiple of W.
inline void add_rows(const float* Y, std::size_t ldy, const float* a, std::size_t n, std::size_t k, float* out) {
    std::size_t j = 0;
    for (; j + 4 * W <= k; j += 4 * W) {
        vec s[4] = {};
        for (std::size_t t = 0; t < n; ++t)
#pragma GCC unroll 4
            for (std::size_t v = 0; v < 4; ++v) s[v] += a[t] * load(Y + t * ldy + j + v * W);
        for (std::size_t v = 0; v < 4; ++v) store(out + j + v * W, load(out + j + v * W) + s[v]);
    }
    for (; j < k; j += W) {
        vec s{};
        for (std::size_t t = 0; t < n; ++t) s += a[t] * load(Y + t * ldy + j);
        store(out + j, load(out + j) + s);
    }
}

// W rows of W floats in registers: row q loses coefficient[p][q] times row p, p ascending (forward elimination).
inline void eliminate(vec (&row)[W], const float (&coefficient)[W][W]) {
#pragma GCC unroll 16
    for (std::size_t p = 0; p < W; ++p)
#pragma GCC unroll 16
        for (std::size_t q = p + 1; q < W; ++q) row[q] -= coefficient[p][q] * row[p];
}

// A = U^T U in place, U upper triangular; inverse[p] = 1 / U[p, p]. k is a multiple of W, and the W x W blocks
// on the diagonal hold both triangles. Returns false when a pivot is not positive.
//
// Right-looking, W pivots at a time, all in registers: (1) the diagonal block is eliminated without square
// roots, which keeps the chain from pivot to pivot at a division and a product, (2) the same elimination is
// applied to the columns right of it, a vector at a time, (3) rows are scaled by 1 / sqrt(pivot), (4) the rest of
// the matrix is updated by the tile of the rank-k update.
inline bool cholesky(float* A, std::size_t ld, std::size_t k, float* inverse) {
    for (std::size_t block = 0; block < k; block += W) {
        float* corner = A + block * ld + block;
        alignas(64) float coefficient[W][W];
        vec row[W];
        for (std::size_t p = 0; p < W; ++p) row[p] = load(corner + p * ld);
#pragma GCC unroll 16
        for (std::size_t p = 0; p < W; ++p) {
            const float pivot = row[p][p];
            if (!(pivot > 0 && pivot <= std::numeric_limits<float>::max())) return false;
            inverse[block + p] = pivot;
            store(coefficient[p], row[p] * (1 / pivot));
#pragma GCC unroll 16
            for (std::size_t q = p + 1; q < W; ++q) row[q] -= coefficient[p][q] * row[p];
        }
        for (std::size_t p = 0; p < W; ++p) inverse[block + p] = 1 / std::sqrt(inverse[block + p]);
        for (std::size_t p = 0; p < W; ++p) store(corner + p * ld, row[p] * inverse[block + p]);
        for (std::size_t j = W; block + j < k; j += W) {
#pragma GCC unroll 16
            for (std::size_t p = 0; p < W; ++p) row[p] = load(corner + p * ld + j);
            eliminate(row, coefficient);
#pragma GCC unroll 16
            for (std::size_t p = 0; p < W; ++p) store(corner + p * ld + j, row[p] * inverse[block + p]);
        }
        rank_update<Update::subtract>(corner + W * ld + W, ld, corner + W, ld, W, k - block - W);
    }
    return true;
}

// Solves U^T z = b in place; U as cholesky() leaves it.
inline void solve_transposed(const float* U, std::size_t ld, std::size_t k, const float* inverse, float* b) {
    for (std::size_t block = 0; block < k; block += W) {
        for (std::size_t p = block; p < block + W; ++p) {
            b[p] *= inverse[p];
            for (std::size_t j = p + 1; j < block + W; ++j) b[j] -= b[p] * U[p * ld + j];
        }
        alignas(64) float z[W];
        for (std::size_t p = 0; p < W; ++p) z[p] = -b[block + p];
        add_rows(U + block * ld + block + W, ld, z, W, k - block - W, b + block + W);
    }
}

// Solves U x = z in place. The products with what is known come first, all independent of each other.
inline void solve_upper(const float* U, std::size_t ld, std::size_t k, const float* inverse, float* z) {
    for (std::size_t block = k; block > 0;) {
        const std::size_t known = block;
        block -= W;
        store(z + block, load(z + block) - dots(U + block * ld + known, ld, z + known, k - known));
        for (std::size_t p = known; p-- > block;) {
            z[p] *= inverse[p];
            for (std::size_t q = block; q < p; ++q) z[q] -= U[q * ld + p] * z[p];
        }
    }
}

}  // namespace eckart
