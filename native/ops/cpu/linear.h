// Linear layers: out = x W^T + b, with weights in any format.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/linear.h"

namespace uniproc {

class Linear {
 public:
  Linear(ThreadPool& pool, const Kernels& kernels);
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  // Rearranges a weight with scales in place into tiles (tiles.h), if the kernels multiply them.
  void arrange(LinearWeight& weight, int64_t sliceRows);

  // out [rows, weight.rows] = x [rows, weight.cols] W^T (+ bias). Each element adds the sums of
  // slices of K in order, for any number of rows and threads, so a row of out is independent of the
  // others. With a model in bfloat16, weights in it or quantized ones in tiles, and instructions
  // for it, x is rounded to bfloat16.
  void run(const float* x, int64_t rows, const LinearWeight& weight, float* out);

 private:
  struct Problem {
    const float* x;
    const LinearWeight& weight;
    float* out;
    int64_t outStride;
  };
  // [begin, end) of rows or columns.
  struct Range {
    int64_t begin;
    int64_t end;
    int64_t size() const { return end - begin; }
  };

  struct Panel;

  // out [rows, weight.rows] of rows outStride apart, for a weight of one format.
  void runPart(const float* x, int64_t rows, const LinearWeight& weight, float* out,
               int64_t outStride);
  // Adds the product of rows of x, in type X, with columns of W^T to out.
  template <class X>
  void multiply(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Reads W once and in order: bound by memory.
  template <class X>
  void multiplyFew(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // The same for weights with scales, which are decoded as they are read.
  void multiplyFewStored(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Any number of rows, for weights in tiles.
  template <class X>
  void multiplyTiles(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Whether products with the weight take x in bfloat16.
  bool takesBFloat16(const LinearWeight& weight) const;
  // Copies pieces of W to the L1 cache and multiplies each with all the rows.
  template <class X>
  void multiplyMany(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Copies columns `ks` of rows of x to the panel: slices of K one after another, each [rows,
  // slice].
  template <class X>
  const X* pack(const Problem& problem, Range rows, Range ks, Panel& panel) const;
  void startWithBias(const Problem& problem, Range rows, Range cols) const;
  // [rows, weight.cols]: the columns of x [rows, weight.widthOfInput()] in the order of the
  // weight's.
  const float* inOrder(const float* x, int64_t rows, const LinearWeight& weight);

  ThreadPool& pool_;
  const Kernels& kernels_;
  const std::unique_ptr<Panel[]> panels_;  // by thread
  std::vector<float> ordered_;
};

}  // namespace uniproc
