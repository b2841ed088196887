// The one vector type, as wide as the instruction set this file is compiled for.
//
// GCC's and Clang's vector extensions give load, store, +, -, * on every target, and a * b + c becomes one
// fused multiply-add under -ffp-contract=fast. So no kernel holds an intrinsic; those that the
// extension cannot express well (the sum of the lanes, the mask of a comparison, bytes to floats) stand here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace eckart {

#if defined(__AVX512F__)
inline constexpr std::size_t W = 16;  // floats in a vector
inline constexpr std::size_t MR = 8;  // rows of a register tile: MR x 2 vectors of sums, 16 of 32 registers
#elif defined(__AVX__)
inline constexpr std::size_t W = 8;
inline constexpr std::size_t MR = 4;  // 8 sums, 2 loads and a broadcast fit 16 registers
#else
inline constexpr std::size_t W = 4;
inline constexpr std::size_t MR = 4;
#endif
static_assert(W % MR == 0, "padding to W also pads to MR");

using vec = float __attribute__((vector_size(W * sizeof(float))));

// By memcpy, which both compilers turn into one unaligned load or store: Clang does not believe a vector type that is
// declared with less alignment.
inline vec load(const float* p) {
    vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }
inline vec broadcast(float x) { return x - vec{}; }  // x - 0 in every lane; + 0 would lose the sign of -0

// As many bytes as the vector has lanes, as floats. GCC 12 converts byte vectors lane by lane: 8 times slower.
inline vec load_bytes(const std::int8_t* p) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__SSE2__)
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    const __m128i bytes = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(bytes, bytes);
    return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));  // each byte at the top of its lane
#else
    vec x;
    for (std::size_t i = 0; i < W; ++i) x[i] = p[i];
    return x;
#endif
}

// Lanes added pairwise, in a fixed order: a sum depends on the instruction set but never on the threads.
inline float sum(vec x) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    const __m256 y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    const __m256 y = x;
#endif
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

// Four floats, whatever the instruction set: the scalars of an update that needs several of one kind at once.
using quad = float __attribute__((vector_size(16)));

inline quad inverse_sqrt(quad x) {
#if defined(__SSE__)
    return 1 / quad(_mm_sqrt_ps(x));
#else
    return quad{1 / std::sqrt(x[0]), 1 / std::sqrt(x[1]), 1 / std::sqrt(x[2]), 1 / std::sqrt(x[3])};
#endif
}

// Bit i is set where a[i] > b[i]; a NaN is greater than nothing.
inline std::uint32_t greater(vec a, vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX__)
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#else
    std::uint32_t mask = 0;
    for (std::size_t i = 0; i < W; ++i) mask |= static_cast<std::uint32_t>(a[i] > b[i]) << i;
    return mask;
#endif
}

// In each stretch of 2 S lanes, a's upper half and b's lower half change places.
template <std::size_t S>
inline void exchange(vec& a, vec& b) {
    [&]<std::size_t... L>(std::index_sequence<L...>) {
        const vec lower = __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
        b = __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
        a = lower;
    }(std::make_index_sequence<W>{});
}

// Lane l of r[i] and lane i of r[l] change places, for all i and l: log2 W rounds of exchanges at distance S.
template <std::size_t S = 1>
inline void transpose(vec (&r)[W]) {
    if constexpr (S < W) {
#pragma GCC unroll 16
        for (std::size_t i = 0; i < W; ++i)
            if (!(i & S)) exchange<S>(r[i], r[i + S]);
        transpose<2 * S>(r);
    }
}

// Lane i is the sum of the lanes of s[i], which is overwritten. Half as many vectors each round: half the exchanges of
// a transposition.
template <std::size_t S = W / 2>
inline vec lane_sums(vec (&s)[W]) {
    if constexpr (S == 0) {
        return s[0];
    } else {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < S; ++i) {
            exchange<S>(s[i], s[i + S]);
            s[i] += s[i + S];
        }
        return lane_sums<S / 2>(s);
    }
}

// n rounded up to a multiple of the vector width.
inline constexpr std::size_t padded(std::size_t n) { return (n + W - 1) / W * W; }

}  // namespace eckart
