// Linear layers: out = x W^T + b, with weights in any format.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/linear.h"

namespace uniproc {

class Linear {
 public:
  Linear(ThreadPool& pool, const Kernels& kernels);

  // out [rows, weight.rows] = x [rows, weight.cols] W^T (+ bias). Each element adds blocks of
  // kDepth products in order, for any number of rows and threads, so a row of out is independent of
  // the others.
  void run(const float* x, int64_t rows, const LinearWeight& weight, float* out);

 private:
  struct Problem {
    const float* x;
    const LinearWeight& weight;
    float* out;
  };
  // A range [begin, end) of rows or columns of out.
  struct Range {
    int64_t begin;
    int64_t end;
  };

  void runPart(const Problem& problem, Range rows, Range cols) const;
  void startWithBias(const Problem& problem, Range rows, Range cols) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
};

}  // namespace uniproc
