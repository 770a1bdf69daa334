// Checked conversions of arguments. They throw a TypeError that names the argument.
// test/native/ops/binding.ts has the objects' types.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "ops/ops.h"

namespace uniproc {

int32_t int32Of(Napi::Object object, const char* name);
// 'int32' has the storage type of float32.
StorageType toStorageType(Napi::Value value);
// { data, rows, cols } or null.
Weight toWeight(Napi::Value value);
// { data, rows, cols }, and with scales { scales, scaleRows, scaleCols, dtype }.
LinearWeight toLinearWeight(Napi::Value value, const Weight& bias);
Routing toRouting(Napi::Value value);
Batch toBatch(Napi::Value value);
AttentionShape toAttentionShape(Napi::Value value);
KvCache toKvCache(Napi::Value value);
// Accepts null.
Logprobs toLogprobs(Napi::Value value);
const RequestTable& toTable(Napi::Value value);
// A typed array's memory.
std::pair<uint8_t*, size_t> toBytes(Napi::Value value, const char* name);

// { total, free }
Napi::Object fromFigures(Napi::Env env, double total, double free);

}  // namespace uniproc
