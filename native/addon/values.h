// JavaScript values read with a check, for arguments and options. Each throws a TypeError that
// names what it is not.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace uniproc {

double toNumber(Napi::Value value, const char* name);
// An integer within the safe integers, or within int32.
int64_t toInt64(Napi::Value value, const char* name);
int32_t toInt32(Napi::Value value, const char* name);
bool toBool(Napi::Value value, const char* name);
std::string toString(Napi::Value value, const char* name);
Napi::Object toObject(Napi::Value value, const char* name);
Napi::Array toArray(Napi::Value value, const char* name);
Napi::Function toFunction(Napi::Value value, const char* name);

}  // namespace uniproc
