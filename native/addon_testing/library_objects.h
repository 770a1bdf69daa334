// Access to the library's own Device and Model: objects of uniproc.node, used here through the same
// classes, compiled from the same sources.
#pragma once

#include <napi.h>

namespace uniproc {

// loseDevice(device): makes the device fail from now on, as one that the driver reports lost.
void loseDevice(const Napi::CallbackInfo& info);

// readLogits(model, numRows): a promise of the logits [numRows, vocabSize], float32, of the first
// `numRows` sampled rows of the launched step, before `sample`. Rejects with INVALID_STATE without
// a launched step.
Napi::Value readLogits(const Napi::CallbackInfo& info);

// runLargestStep(model): a promise that resolves when the largest step of `profile` was computed.
Napi::Value runLargestStep(const Napi::CallbackInfo& info);

}  // namespace uniproc
