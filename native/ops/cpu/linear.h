// Linear layers: out = x W^T + b, of weights in any format.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels.h"
#include "ops/cpu/thread_pool.h"
#include "ops/linear.h"

namespace uniproc {

class Linear {
 public:
  Linear(ThreadPool& pool, const Kernels& kernels);

  // out [rows, weight.rows] = x [rows, weight.cols] W^T (+ bias). An element's sum is made of
  // blocks of kDepth products, added in order, whatever the number of rows and threads: a row of
  // out does not depend on the others.
  void run(const float* x, int64_t rows, const LinearWeight& weight, float* out);

 private:
  struct Problem {
    const float* x;
    const LinearWeight& weight;
    float* out;
  };
  // Rows and columns of out, from begin to end.
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
