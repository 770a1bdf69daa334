#include "ops/cuda/steps.h"

#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "base/thread_name.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

double milliseconds(cudaEvent_t from, cudaEvent_t to) {
  float elapsed = 0;
  check(cudaEventElapsedTime(&elapsed, from, to), "cudaEventElapsedTime");
  return elapsed;
}

}  // namespace

Steps::Steps(int device, cudaStream_t stream)
    : device_(device), stream_(stream), thread_([this] { run(); }) {}

Steps::~Steps() {
  ended_.close();
  thread_.join();
}

void Steps::begin() {
  if (!current_) current_ = idleEvents();
  check(cudaEventRecord(current_->begin, stream_), "cudaEventRecord");
}

void Steps::end(const char* last, Ops::Done done) {
  check(cudaEventRecord(current_->end, stream_), "cudaEventRecord");
  ended_.push({std::move(current_), last, std::move(done)});
}

StepTimes Steps::times() const {
  std::lock_guard lock(mutex_);
  return times_;
}

void Steps::run() {
  setThreadName("WorkerSteps");
  while (std::optional<Ended> step = ended_.pop()) {
    std::exception_ptr error;
    try {
      wait(*step);
    } catch (...) {
      error = std::current_exception();
    }
    step->done(error);
  }
}

void Steps::wait(Ended& step) {
  check(cudaSetDevice(device_), "cudaSetDevice");
  check(cudaEventSynchronize(step.events->end),
        (std::string("cudaEventSynchronize, at or after ") + step.last + ",").c_str());
  count(std::move(step.events));
}

void Steps::count(std::unique_ptr<StepEvents> events) {
  const double busy = milliseconds(events->begin, events->end);
  const double idle = previous_ ? milliseconds(previous_->end, events->begin) : 0;
  std::lock_guard lock(mutex_);
  ++times_.numSteps;
  times_.busyMs += busy;
  times_.idleMs += idle;
  if (previous_) unused_.push_back(std::move(previous_));
  previous_ = std::move(events);
}

std::unique_ptr<Steps::StepEvents> Steps::idleEvents() {
  {
    std::lock_guard lock(mutex_);
    if (!unused_.empty()) {
      std::unique_ptr<StepEvents> events = std::move(unused_.back());
      unused_.pop_back();
      return events;
    }
  }
  return std::make_unique<StepEvents>();
}

}  // namespace uniproc::cuda
