// How high the scores of a panel of items can be, by Cauchy and Schwarz: q . y + c <= |q| max |y| + max c. A panel
// whose ceiling is below a query's worst kept score is passed over unread.
//
// Norms and c are enlarged by what float32 can round in a score (n terms: n u times |q| |y|, Higham 2002, section 3.1,
// u = 2^-24), so no item is ever missed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace eckart {

inline constexpr double unit = 0x1p-24;

inline float rounded_up(double x) {
    const auto y = static_cast<float>(x);
    return y < x ? std::nextafter(y, std::numeric_limits<float>::infinity()) : y;
}

// 2 k + 16 roundings: k + 1 in each of two sums, then a few to put a bound together.
inline double slack_of(std::size_t k) { return (2. * static_cast<double>(k) + 16) * unit; }

// At least c; 1e-24 is above all that can be lost to underflow.
inline float shift_of(float bias) { return rounded_up(bias + 16 * unit * std::fabs(bias) + 1e-24); }

// What the bounds allow for: a NaN does not fit either.
inline bool fits(double norm, float bias) { return norm < 1e15 && std::fabs(bias) < 1e30; }

struct Ceiling {
    float norm = 0, shift = -std::numeric_limits<float>::infinity();

    // An item that does not fit makes the ceiling infinite: its panel is never passed over.
    void cover(double item_norm, float bias, std::size_t k) {
        constexpr float infinity = std::numeric_limits<float>::infinity();
        const bool fit = fits(item_norm, bias);
        norm = std::max(norm, fit ? rounded_up(item_norm * (1 + slack_of(k))) : infinity);
        shift = std::max(shift, fit ? shift_of(bias) : infinity);
    }
    bool below(float worst, float query_norm) const { return query_norm * norm + shift < worst; }
};

inline double norm_of(const float* y, std::size_t k) {
    double squares = 0;
    for (std::size_t f = 0; f < k; ++f) squares += static_cast<double>(y[f]) * y[f];
    return std::sqrt(squares);
}

}  // namespace eckart
