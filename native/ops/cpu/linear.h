// Linear layers: out = x W^T + b, with weights in any format.
#pragma once

#include <cstdint>
#include <memory>

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

  // out [rows, weight.rows] = x [rows, weight.cols] W^T (+ bias). Each element adds the sums of
  // slices of K in order, for any number of rows and threads, so a row of out is independent of the
  // others. With weights in bfloat16 and instructions for it, x is rounded to bfloat16.
  void run(const float* x, int64_t rows, const LinearWeight& weight, float* out);

 private:
  struct Problem {
    const float* x;
    const LinearWeight& weight;
    float* out;
  };
  // [begin, end) of rows or columns.
  struct Range {
    int64_t begin;
    int64_t end;
    int64_t size() const { return end - begin; }
  };

  struct Panel;

  // Adds the product of rows of x, in type X, with columns of W^T to out.
  template <class X>
  void multiply(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Reads W once and in order: bound by memory.
  template <class X>
  void multiplyFew(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Copies pieces of W to the L1 cache and multiplies each with all the rows.
  template <class X>
  void multiplyMany(const Problem& problem, Range rows, Range cols, Panel& panel) const;
  // Copies columns `ks` of rows of x to the panel: slices of K one after another, each [rows,
  // slice].
  template <class X>
  const X* pack(const Problem& problem, Range rows, Range ks, Panel& panel) const;
  void startWithBias(const Problem& problem, Range rows, Range cols) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  const std::unique_ptr<Panel[]> panels_;  // by thread
};

}  // namespace uniproc
