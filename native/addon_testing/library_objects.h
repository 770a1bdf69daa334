// What tests do to the library's own Device and Model: objects of uniproc.node, used here through
// the same classes, compiled from the same sources.
#pragma once

#include <napi.h>

namespace uniproc {

// loseDevice(device): from now on the device fails, as one does that its driver reports lost.
void loseDevice(const Napi::CallbackInfo& info);

// readLogits(model, numRows): a promise of the logits [numRows, vocabSize], float32, of the first
// `numRows` rows to be sampled of the step that waits for `sample`. Rejects with INVALID_STATE when
// no step does.
Napi::Value readLogits(const Napi::CallbackInfo& info);

}  // namespace uniproc
