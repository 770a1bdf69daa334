#include "runtime/device_thread.h"

#include <utility>

#include "base/error.h"
#include "base/thread_name.h"
#include "ops/cpu/cpu_ops.h"
#include "runtime/cuda_backend.h"

namespace uniproc {
namespace {

std::exception_ptr shutDown() {
  return std::make_exception_ptr(Error("SHUT_DOWN", "the device was shut down"));
}

}  // namespace

DeviceThread::DeviceThread(std::string kind, int index, int numThreads)
    : kind_(std::move(kind)), index_(index), numThreads_(numThreads) {}

DeviceThread::~DeviceThread() {
  abandon();
  join();
}

std::unique_ptr<Ops> DeviceThread::openBackend() const {
  if (kind_ == "cpu") return makeCpuOps(numThreads_);
  if (kind_ == "cuda") return openCudaBackend(index_);
  throw Error("NOT_SUPPORTED", "unknown device kind '" + kind_ + "'; supported: cpu, cuda");
}

void DeviceThread::open() {
  std::lock_guard lock(mutex_);
  if (stopping_) std::rethrow_exception(shutDown());
  if (opened_) throw Error("INVALID_STATE", "the device is already open");
  thread_ = std::thread([this] { run(); });
  opened_ = true;
}

void DeviceThread::run() {
  setThreadName("Worker");
  try {
    ops_ = openBackend();
  } catch (...) {
    failure_ = std::current_exception();
  }

  while (std::optional<Task> task = queue_.pop()) runTask(*task);

  std::vector<std::shared_ptr<Resident>> residents;
  std::function<void()> stopped;
  {
    std::lock_guard lock(mutex_);
    residents.swap(residents_);
    stopped = std::move(stopped_);
  }
  // In reverse order, because a resident may use those attached before it (a model its
  // communicator).
  for (auto it = residents.rbegin(); it != residents.rend(); ++it) (*it)->release();
  ops_.reset();
  if (stopped) stopped();
}

void DeviceThread::runTask(const Task& task) {
  std::exception_ptr error = abandoned_.stopRequested() ? shutDown() : failure_;
  if (task.evicted) {
    releaseResident(task.evicted);
    error = nullptr;
  } else if (!error) {
    try {
      task.work(*ops_);
    } catch (const Error& thrown) {
      error = std::current_exception();
      if (thrown.code() == "DEVICE_FAILED") failure_ = error;
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (task.done) task.done(error);
}

void DeviceThread::releaseResident(const std::shared_ptr<Resident>& resident) {
  resident->release();
  std::lock_guard lock(mutex_);
  std::erase(residents_, resident);
}

std::exception_ptr DeviceThread::closedError() {
  std::lock_guard lock(mutex_);
  if (stopping_) return shutDown();
  if (opened_) return nullptr;
  return std::make_exception_ptr(
      Error("INVALID_STATE", "the device is not open; call open() first"));
}

void DeviceThread::push(Task task) {
  std::exception_ptr error = closedError();
  if (!error && queue_.push(std::move(task))) return;
  if (task.done) task.done(error ? error : shutDown());
}

void DeviceThread::enqueue(Work work, Done done) { push({std::move(work), std::move(done)}); }

void DeviceThread::attach(std::shared_ptr<Resident> resident) {
  if (std::exception_ptr error = closedError()) std::rethrow_exception(error);
  std::lock_guard lock(mutex_);
  residents_.push_back(std::move(resident));
}

void DeviceThread::evict(const std::shared_ptr<Resident>& resident, Done done) {
  push({nullptr, std::move(done), resident});
}

void DeviceThread::stop(std::function<void()> stopped) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    if (opened_) stopped_ = std::exchange(stopped, nullptr);
  }
  queue_.close();
  if (stopped) stopped();  // no thread is running to call it
}

void DeviceThread::abandon() {
  abandoned_.requestStop();
  stop(nullptr);
}

void DeviceThread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace uniproc
