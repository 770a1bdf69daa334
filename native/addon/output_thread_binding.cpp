#include "addon/output_thread_binding.h"

#include "addon/event_binding.h"
#include "addon/values.h"

namespace uniproc {

void OutputThreadBinding::define(Napi::Env env, Napi::Object exports) {
  exports.Set("OutputThread", DefineClass(env, "OutputThread",
                                          {
                                              method<&OutputThreadBinding::submit>("submit"),
                                              method<&OutputThreadBinding::shutdown>("shutdown"),
                                          }));
}

OutputThreadBinding::OutputThreadBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    thread_ = std::make_shared<OutputThread>(toString(info[0], "name"));
    environment_->addThread(thread_);
  });
}

OutputThreadBinding::~OutputThreadBinding() {
  if (thread_ && !isShutDown()) environment_->retire(thread_);
}

Napi::Value OutputThreadBinding::submit(const Napi::CallbackInfo& info) {
  EventBinding& event = EventBinding::of(*environment_, info[0]);
  Callback* waiter = event.addWaiter(toFunction(info[1], "callback"));
  thread_->submit(
      event.event(), [environment = environment_.get(), waiter](std::exception_ptr error) {
        environment->post(
            [environment, waiter, error](Napi::Env) { environment->complete(waiter, error); });
      });
  return info.Env().Undefined();
}

Napi::Value OutputThreadBinding::shutdown(const Napi::CallbackInfo&) {
  return shutdownOnce([this] {
    return environment_->promise(
        [this](Environment::Settle settle) { environment_->retire(thread_, settle); });
  });
}

}  // namespace uniproc
