// Checked conversions of JavaScript values. They throw a TypeError that names the argument.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace uniproc {

double toNumber(Napi::Value value, const char* name);
bool isSafeInteger(double number);
// Safe integers, or 32-bit integers.
int64_t toInt64(Napi::Value value, const char* name);
int32_t toInt32(Napi::Value value, const char* name);
bool toBool(Napi::Value value, const char* name);
std::string toString(Napi::Value value, const char* name);
Napi::Object toObject(Napi::Value value, const char* name);
Napi::Array toArray(Napi::Value value, const char* name);
Napi::Function toFunction(Napi::Value value, const char* name);

}  // namespace uniproc
