// Routing by sigmoids on the CPU.
#pragma once

#include "base/thread_pool.h"
#include "ops/experts.h"

namespace uniproc {

// As ExpertOps::routeTokensBySigmoid.
void routeTokensBySigmoid(ThreadPool& pool, const float* logits, const SigmoidRouting& rule,
                          const Routing& routing);

}  // namespace uniproc
