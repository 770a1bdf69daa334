#include "addon/values.h"
#include "addon_testing/handles.h"
#include "addon_testing/ops_binding.h"
#include "addon_testing/ops_values.h"

namespace uniproc {

// sample(logits, count, vocabSize, slots, requests, bitmask, sampled, logprobs, numNans,
// truncation)
Napi::Value OpsBinding::sample(const Info& info) {
  const Logprobs logprobs = toLogprobs(info[7]);
  const SampledFeatures features{toBool(info[9], "truncation"), logprobs.tokenIds != nullptr};
  ops_->sample(toData<float>(info[0], "logits"), toInt32(info[1], "count"),
               toInt32(info[2], "vocabSize"), toData<int32_t>(info[3], "slots"), toTable(info[4]),
               toData<int32_t>(info[5], "bitmask"), features, toData<int32_t>(info[6], "sampled"),
               toTensor(info[8], "numNans").buffer.as<int32_t>(), logprobs);
  return info.Env().Undefined();
}

// gatherLogprobs(logits, count, vocabSize, tokenIds, numTop, out, numNans)
Napi::Value OpsBinding::gatherLogprobs(const Info& info) {
  ops_->gatherLogprobs(toData<float>(info[0], "logits"), toInt32(info[1], "count"),
                       toInt32(info[2], "vocabSize"), toData<int32_t>(info[3], "tokenIds"),
                       toInt32(info[4], "numTop"),
                       toTensor(info[6], "numNans").buffer.as<int32_t>(), toLogprobs(info[5]));
  return info.Env().Undefined();
}

}  // namespace uniproc
