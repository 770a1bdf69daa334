// The rate at which threads read memory: the ceiling of a decode step on a CPU.
#pragma once

#include <napi.h>

#include <memory>

namespace uniproc {

// ReadRate(bytes, numThreads): memory of that size, larger than the caches, and the threads.
class ReadRate : public Napi::ObjectWrap<ReadRate> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ReadRate(const Napi::CallbackInfo& info);
  ~ReadRate() override;

 private:
  struct State;

  // Reads the memory once and returns bytes per second.
  Napi::Value measure(const Napi::CallbackInfo& info);

  std::unique_ptr<State> state_;
};

}  // namespace uniproc
