#include "addon/values.h"

#include <cmath>

namespace uniproc {
namespace {

[[noreturn]] void throwTypeError(Napi::Env env, const char* name, const char* expected) {
  throw Napi::TypeError::New(env, std::string(name) + " must be " + expected);
}

}  // namespace

double toNumber(Napi::Value value, const char* name) {
  if (!value.IsNumber()) throwTypeError(value.Env(), name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

bool isSafeInteger(double number) {
  constexpr double kMaxSafeInteger = 9007199254740991.0;
  return std::trunc(number) == number && std::abs(number) <= kMaxSafeInteger;
}

int64_t toInt64(Napi::Value value, const char* name) {
  const double number = toNumber(value, name);
  if (!isSafeInteger(number)) throwTypeError(value.Env(), name, "an integer");
  return static_cast<int64_t>(number);
}

int32_t toInt32(Napi::Value value, const char* name) {
  const int64_t number = toInt64(value, name);
  if (number != static_cast<int32_t>(number)) {
    throwTypeError(value.Env(), name, "a 32-bit integer");
  }
  return static_cast<int32_t>(number);
}

bool toBool(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) throwTypeError(value.Env(), name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string toString(Napi::Value value, const char* name) {
  if (!value.IsString()) throwTypeError(value.Env(), name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object toObject(Napi::Value value, const char* name) {
  if (!value.IsObject()) throwTypeError(value.Env(), name, "an object");
  return value.As<Napi::Object>();
}

Napi::Array toArray(Napi::Value value, const char* name) {
  if (!value.IsArray()) throwTypeError(value.Env(), name, "an array");
  return value.As<Napi::Array>();
}

Napi::Function toFunction(Napi::Value value, const char* name) {
  if (!value.IsFunction()) throwTypeError(value.Env(), name, "a function");
  return value.As<Napi::Function>();
}

}  // namespace uniproc
