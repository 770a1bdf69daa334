#include "addon/model_runner_binding.h"

#include <utility>

#include "addon/communicator_binding.h"
#include "addon/device_binding.h"
#include "addon/event_binding.h"
#include "addon/model_values.h"
#include "addon/values.h"
#include "base/error.h"
#include "runtime/event.h"

namespace uniproc {

void ModelRunnerBinding::define(Napi::Env env, Napi::Object exports) {
  exports.Set("ModelRunner",
              DefineClass(env, "ModelRunner",
                          {
                              method<&ModelRunnerBinding::load>("load"),
                              method<&ModelRunnerBinding::loadDummy>("loadDummy"),
                              method<&ModelRunnerBinding::releaseWeights>("releaseWeights"),
                              method<&ModelRunnerBinding::offloadWeights>("offloadWeights"),
                              method<&ModelRunnerBinding::restoreWeights>("restoreWeights"),
                              method<&ModelRunnerBinding::profile>("profile"),
                              method<&ModelRunnerBinding::allocateKvCache>("allocateKvCache"),
                              method<&ModelRunnerBinding::releaseKvCache>("releaseKvCache"),
                              method<&ModelRunnerBinding::warmUp>("warmUp"),
                              method<&ModelRunnerBinding::checkRequest>("checkRequest"),
                              method<&ModelRunnerBinding::addRequest>("addRequest"),
                              method<&ModelRunnerBinding::removeRequest>("removeRequest"),
                              method<&ModelRunnerBinding::forward>("forward"),
                              method<&ModelRunnerBinding::sample>("sample"),
                              method<&ModelRunnerBinding::shutdown>("shutdown"),
                          }));
  exports.Set("declareParameters",
              Napi::Function::New<declareParameters>(env, "declareParameters"));
}

// declareParameters(spec, rank, worldSize), without creating the model.
Napi::Value ModelRunnerBinding::declareParameters(const Napi::CallbackInfo& info) {
  Napi::Value declared;
  withTypedErrors(info.Env(), [&] {
    const ModelShard shard(toModelSpec(toObject(info[0], "spec")), toInt32(info[1], "rank"),
                           toInt32(info[2], "worldSize"));
    Parameters parameters(shard);
    const Decoder decoder(shard, parameters);
    declared = fromParameters(info.Env(), parameters.declared());
  });
  return declared;
}

ModelRunnerBinding::ModelRunnerBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    DeviceBinding& device = DeviceBinding::of(*environment_, info[0]);
    std::shared_ptr<DeviceCommunicator> communicator;
    if (!info[3].IsNull() && !info[3].IsUndefined()) {
      const CommunicatorBinding& binding = CommunicatorBinding::of(*environment_, info[3]);
      if (binding.device() != device.device()) {
        throw Error("CONFIG_INVALID", "a model and its communicator must use the same device");
      }
      communicator = binding.communicator();
      communicatorObject_ = Napi::Persistent(info[3].As<Napi::Object>());
    }
    auto model = std::make_shared<ModelRunner>(toModelSpec(toObject(info[1], "spec")),
                                               toModelLimits(toObject(info[2], "limits")),
                                               std::move(communicator));
    device.device()->attach(model);
    deviceObject_ = Napi::Persistent(info[0].As<Napi::Object>());
    device_ = device.device();
    model_ = std::move(model);
    environment_->models.insert(this);
    info.This().As<Napi::Object>().DefineProperty(
        Napi::PropertyDescriptor::Value("steps", shareSteps(info.Env()), napi_enumerable));
  });
}

ModelRunnerBinding::~ModelRunnerBinding() {
  environment_->models.erase(this);
  if (model_ && !isShutDown()) device_->evict(model_, nullptr);
}

Napi::Array ModelRunnerBinding::shareSteps(Napi::Env env) {
  auto array = Napi::Array::New(env);
  for (const std::shared_ptr<StepBuffers>& step : model_->steps()) {
    const auto memory = Napi::ArrayBuffer::New(env, step->data(), step->bytes(),
                                               [step](Napi::Env, void*) { /* keeps it alive */ });
    stepMemory_.push_back(Napi::Persistent(memory));
    array.Set(array.Length(), fromStepBuffers(memory, *step));
  }
  return array;
}

void ModelRunnerBinding::enqueue(DeviceThread::Work work, DeviceThread::Done done) {
  if (!isShutDown()) {
    device_->enqueue(std::move(work), std::move(done));
  } else if (done) {
    done(std::make_exception_ptr(Error("SHUT_DOWN", "the model was shut down")));
  }
}

Napi::Promise ModelRunnerBinding::promise(DeviceThread::Work work) {
  return environment_->promise(
      [&](Environment::Settle settle) { enqueue(std::move(work), std::move(settle)); });
}

Napi::Value ModelRunnerBinding::load(const Napi::CallbackInfo& info) {
  const Napi::Array paths = toArray(info[0], "files");
  std::vector<std::string> files;
  for (uint32_t i = 0; i < paths.Length(); ++i) files.push_back(toString(paths.Get(i), "files"));
  std::vector<ParameterSource> sources = toParameterSources(info[1], "sources");

  Environment* environment = environment_.get();
  Callback* onProgress = environment->addCallback(toFunction(info[2], "onProgress"));
  const auto progress = [environment, onProgress](int64_t bytes, int64_t numTensors) {
    environment->post([=](Napi::Env env) {
      environment->call(onProgress, {Napi::Number::New(env, static_cast<double>(bytes)),
                                     Napi::Number::New(env, static_cast<double>(numTensors))});
    });
  };
  auto work = [model = model_, files = std::move(files), sources = std::move(sources), progress,
               stop = device_->abandoned()](Ops& ops) {
    model->load(ops, files, sources, progress, stop);
  };
  return environment->promise([&](Environment::Settle settle) {
    enqueue(std::move(work), [=](std::exception_ptr error) {
      environment->post([=](Napi::Env) { environment->remove(onProgress); });
      settle(error);
    });
  });
}

Napi::Value ModelRunnerBinding::loadDummy(const Napi::CallbackInfo& info) {
  const auto seed = static_cast<uint64_t>(toInt64(info[0], "seed"));
  return promise([model = model_, seed](Ops& ops) { model->loadDummy(ops, seed); });
}

Napi::Value ModelRunnerBinding::releaseWeights(const Napi::CallbackInfo&) {
  return promise([model = model_](Ops&) { model->releaseWeights(); });
}

Napi::Value ModelRunnerBinding::offloadWeights(const Napi::CallbackInfo&) {
  return promise([model = model_](Ops& ops) { model->offloadWeights(ops); });
}

Napi::Value ModelRunnerBinding::restoreWeights(const Napi::CallbackInfo&) {
  return promise([model = model_](Ops& ops) { model->restoreWeights(ops); });
}

Napi::Value ModelRunnerBinding::profile(const Napi::CallbackInfo&) {
  auto graphBytes = std::make_shared<size_t>(0);
  const auto start = [&](Environment::Settle settle) {
    enqueue([model = model_, graphBytes](Ops& ops) { *graphBytes = model->profile(ops); },
            std::move(settle));
  };
  return environment_->promise(start, [graphBytes](Napi::Env env) {
    return Napi::Number::New(env, static_cast<double>(*graphBytes));
  });
}

Napi::Value ModelRunnerBinding::allocateKvCache(const Napi::CallbackInfo& info) {
  const int32_t numBlocks = toInt32(info[0], "numBlocks");
  return promise([model = model_, numBlocks](Ops& ops) { model->allocateKvCache(ops, numBlocks); });
}

Napi::Value ModelRunnerBinding::releaseKvCache(const Napi::CallbackInfo&) {
  return promise([model = model_](Ops&) { model->releaseKvCache(); });
}

Napi::Value ModelRunnerBinding::warmUp(const Napi::CallbackInfo&) {
  return promise([model = model_](Ops& ops) { model->warmUp(ops); });
}

Napi::Value ModelRunnerBinding::checkRequest(const Napi::CallbackInfo& info) {
  model_->checkRequest(toRequest(info[0]));
  return info.Env().Undefined();
}

Napi::Value ModelRunnerBinding::addRequest(const Napi::CallbackInfo& info) {
  const int32_t slot = toInt32(info[0], "slot");
  auto request = std::make_shared<const Request>(toRequest(info[1]));
  enqueue([model = model_, slot, request = std::move(request)](Ops& ops) {
    model->addRequest(ops, slot, *request);
  });
  return info.Env().Undefined();
}

Napi::Value ModelRunnerBinding::removeRequest(const Napi::CallbackInfo& info) {
  const int32_t slot = toInt32(info[0], "slot");
  enqueue([model = model_, slot](Ops&) { model->removeRequest(slot); });
  return info.Env().Undefined();
}

Napi::Value ModelRunnerBinding::forward(const Napi::CallbackInfo& info) {
  const StepLaunch launch{toInt32(info[0], "step"),
                          toInt32(info[1], "numRows"),
                          toInt32(info[2], "numBlockUpdates"),
                          toInt32(info[3], "numSampled"),
                          toInt32(info[4], "numPromptLogprobRows"),
                          info[5].IsUndefined() || toBool(info[5], "awaitsBitmask")};
  enqueue([model = model_, launch](Ops& ops) { model->forward(ops, launch); });
  return info.Env().Undefined();
}

Napi::Value ModelRunnerBinding::sample(const Napi::CallbackInfo& info) {
  const int32_t step = toInt32(info[0], "step");
  std::shared_ptr<const std::vector<int32_t>> bitmask;
  if (!info[1].IsNull() && !info[1].IsUndefined()) {
    bitmask = std::make_shared<const std::vector<int32_t>>(toInt32Vector(info[1], "bitmask"));
  }
  auto event = std::make_shared<Event>(Event::Source::kDevice);
  const auto complete = [event](std::exception_ptr error) { event->complete(error); };
  auto work = [model = model_, step, bitmask = std::move(bitmask), complete](Ops& ops) {
    model->sample(ops, step, bitmask.get(), complete);
  };
  enqueue(std::move(work), [complete](std::exception_ptr error) {
    if (error) complete(error);
  });
  return EventBinding::create(*environment_, std::move(event));
}

Napi::Value ModelRunnerBinding::shutdown(const Napi::CallbackInfo&) { return shutdown(); }

Napi::Value ModelRunnerBinding::shutdown() {
  return shutdownOnce([this] {
    Ref();  // until the promise settles
    const auto start = [this](Environment::Settle settle) {
      // A device that was shut down has already released its models.
      device_->evict(model_, [settle](std::exception_ptr) { settle(nullptr); });
    };
    return environment_->promise(start, [this](Napi::Env env) {
      for (const auto& memory : stepMemory_) memory.Value().Detach();
      stepMemory_.clear();
      Unref();
      return env.Undefined();
    });
  });
}

}  // namespace uniproc
