#include "addon/environment.h"

#include <new>
#include <stdexcept>
#include <utility>

#include "addon/values.h"
#include "base/error.h"
#include "comm/peer_lost.h"

namespace uniproc {
namespace {

void setErrorFactory(const Napi::CallbackInfo& info) {
  Environment::of(info.Env())->errorFactory = Napi::Persistent(toFunction(info[0], "make"));
}

}  // namespace

Environment::Environment(Napi::Env env) : env_(env), mailbox_(env) {}

void Environment::open(Napi::Env env, Napi::Object exports) {
  using Instance = std::shared_ptr<Environment>;
  try {
    auto environment = std::make_shared<Environment>(env);
    env.SetInstanceData(std::make_unique<Instance>(environment).release());
    // Cleanup hooks run in reverse order: this one runs before that of the mailbox's thread-safe
    // function.
    env.AddCleanupHook([](Environment* instance) { instance->close(); }, environment.get());
  } catch (const std::runtime_error& error) {
    throw Napi::Error::New(env, error.what());
  }
  exports.Set("setErrorFactory", Napi::Function::New<setErrorFactory>(env, "setErrorFactory"));
}

std::shared_ptr<Environment> Environment::of(Napi::Env env) {
  return *env.GetInstanceData<std::shared_ptr<Environment>>();
}

void Environment::close() {
  closed_ = true;
  for (const auto& thread : threads_) thread->abandon();
  for (const auto& thread : threads_) thread->join();
  threads_.clear();
  mailbox_.close();
  callbacks_.clear();
  errorFactory.Reset();
  deviceClass.Reset();
  communicatorClass.Reset();
  eventClass.Reset();
}

Napi::Error Environment::error(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Napi::Error& error) {
    return error;
  } catch (const PeerLost& error) {
    return typedError(error.code(), error.what(), {}, error.rank());
  } catch (const Error& error) {
    return typedError(error.code(), error.what(), error.file());
  } catch (const std::bad_alloc&) {
    return typedError("OUT_OF_MEMORY", "the host is out of memory", {});
  } catch (const std::exception& error) {
    return typedError("INTERNAL", error.what(), {});
  }
}

Napi::Error Environment::typedError(const std::string& code, const std::string& message,
                                    const std::string& file, std::optional<int32_t> rank) {
  if (errorFactory.IsEmpty()) {
    Napi::Error error = Napi::Error::New(env_, message);
    error.Set("code", code);
    return error;
  }
  const Napi::Value error =
      errorFactory.Call({Napi::String::New(env_, code), Napi::String::New(env_, message),
                         file.empty() ? env_.Undefined() : Napi::String::New(env_, file),
                         rank ? Napi::Number::New(env_, *rank) : env_.Undefined()});
  return Napi::Error(env_, error);
}

void Environment::post(std::function<void(Napi::Env)> delivery) {
  mailbox_.post([this, delivery = std::move(delivery)] {
    try {
      delivery(env_);
    } catch (const Napi::Error&) {
      // The environment is shutting down and JavaScript can no longer run, so the error is dropped.
    }
  });
}

Napi::Promise Environment::promise(const std::function<void(Settle)>& start, Result result) {
  const auto deferred = Napi::Promise::Deferred::New(env_);
  mailbox_.hold();
  const Settle settle = [this, deferred, result = std::move(result)](std::exception_ptr thrown) {
    post([this, deferred, result, thrown](Napi::Env env) {
      mailbox_.release();
      if (thrown) {
        deferred.Reject(error(thrown).Value());
      } else {
        deferred.Resolve(result ? result(env) : env.Undefined());
      }
    });
  };
  try {
    start(settle);
  } catch (...) {
    settle(std::current_exception());
  }
  return deferred.Promise();
}

Napi::Promise Environment::promise(DeviceThread& device, DeviceThread::Work work, Result result) {
  return promise([&](Settle settle) { device.enqueue(std::move(work), std::move(settle)); },
                 std::move(result));
}

Callback* Environment::addCallback(Napi::Function function) {
  auto callback = std::make_unique<Callback>();
  callback->function = Napi::Persistent(function);
  Callback* address = callback.get();
  callbacks_.emplace(address, std::move(callback));
  return address;
}

void Environment::hold(Callback* callback) {
  if (!std::exchange(callback->holdsLoop, true)) mailbox_.hold();
}

void Environment::call(const Callback* callback, std::initializer_list<napi_value> arguments) {
  try {
    callback->function.Call(arguments);
  } catch (const Napi::Error& thrown) {
    napi_fatal_exception(env_, thrown.Value());  // raises 'uncaughtException'
  }
}

void Environment::complete(Callback* callback, std::exception_ptr thrown) {
  const Napi::Value argument = thrown ? error(thrown).Value() : env_.Null();
  call(callback, {argument});
  remove(callback);
}

void Environment::remove(Callback* callback) {
  if (callback->holdsLoop) mailbox_.release();
  callbacks_.erase(callback);
}

void Environment::addThread(std::shared_ptr<Stoppable> thread) {
  threads_.push_back(std::move(thread));
}

void Environment::retire(const std::shared_ptr<Stoppable>& thread, const Settle& retired) {
  if (closed_) return;
  thread->stop([this, address = thread.get(), retired] {
    post([this, address, retired](Napi::Env) {
      address->join();
      std::erase_if(threads_, [address](const auto& other) { return other.get() == address; });
      if (retired) retired(nullptr);
    });
  });
}

}  // namespace uniproc
