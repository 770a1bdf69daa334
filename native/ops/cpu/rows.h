// Operations on rows of activations that few families have: plain loops, rows [begin, end).
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace uniproc {

// x[i] += y[i] for i in [begin, end).
void addTo(float* x, const float* y, int64_t begin, int64_t end);

// As ForwardOps::addGated.
void addGatedRows(const float* x, const float* gate, int64_t begin, int64_t end, int64_t width,
                  float* out);

// As ForwardOps::activateAndMul, for one row; SiLU is in kernels.h.
void activateAndMulRow(const float* gate, const float* up, int64_t size, Activation activation,
                       float* out);

// As ForwardOps::scaleQueries, at these positions.
void scaleQueryRows(float* qkv, int64_t begin, int64_t end, const int32_t* positions,
                    const AttentionShape& shape, const ForwardOps::Temperature& temperature);

// As ForwardOps::normValues.
void normValueRows(float* qkv, int64_t begin, int64_t end, const AttentionShape& shape, float eps);

// As ForwardOps::sumSquares.
void sumSquaresRows(const float* qkv, int64_t begin, int64_t end, const AttentionShape& shape,
                    float* sums);

// As ForwardOps::normProjections. `widen` converts elements of the norms' type.
void normProjectionRows(float* qkv, int64_t begin, int64_t end, const AttentionShape& shape,
                        const ForwardOps::ProjectionNorm& norm,
                        void (*widen)(const void* x, int64_t count, float* out));

}  // namespace uniproc
