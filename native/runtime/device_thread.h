// A device and the thread that owns it. Everything that can block, from opening the device to the
// forward pass, is a task on that thread; tasks run in order.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend/resident.h"
#include "base/queue.h"
#include "base/stop_token.h"
#include "ops/ops.h"
#include "runtime/stoppable.h"

namespace uniproc {

class DeviceThread : public Stoppable {
 public:
  using Work = std::function<void(Ops&)>;
  // Called exactly once per task, usually on the device's thread, with null or the task's
  // exception. Must not throw.
  using Done = std::function<void(std::exception_ptr)>;
  DeviceThread(std::string kind, int index, int numThreads);
  ~DeviceThread() override;

  // Starts the thread, which opens the device. Throws INVALID_STATE on a second call. If opening
  // fails, every task fails with that error.
  void open();

  // After a task has thrown DEVICE_FAILED, all later tasks fail with that error; other errors only
  // fail their own task. Fails with INVALID_STATE before `open` and SHUT_DOWN after `stop`.
  void enqueue(Work work, Done done = nullptr);

  // The device keeps a resident until it is evicted or the device closes. `evict` enqueues its
  // release, which also runs on a failed device. `attach` throws if `enqueue` would fail.
  void attach(std::shared_ptr<Resident> resident);
  void evict(const std::shared_ptr<Resident>& resident, Done done);

  // `stop` runs the tasks that are queued; `abandon` fails them with SHUT_DOWN.
  void stop(std::function<void()> stopped) override;
  void abandon() override;
  void join() override;

  // Set by `abandon`; long tasks check it and stop early.
  StopToken abandoned() const { return abandoned_.token(); }

 private:
  struct Task {
    Work work;
    Done done;
    std::shared_ptr<Resident> evicted = nullptr;  // instead of work
  };

  std::unique_ptr<Ops> openBackend() const;
  void run();
  void runTask(const Task& task);
  void releaseResident(const std::shared_ptr<Resident>& resident);
  void push(Task task);
  std::exception_ptr closedError();

  const std::string kind_;
  const int index_;
  const int numThreads_;

  Queue<Task> queue_;
  StopSource abandoned_;
  std::mutex mutex_;  // guards the four members below
  bool opened_ = false;
  bool stopping_ = false;
  std::function<void()> stopped_;
  std::vector<std::shared_ptr<Resident>> residents_;

  // Used by the device's thread only.
  std::unique_ptr<Ops> ops_;
  std::exception_ptr failure_;

  std::thread thread_;
};

}  // namespace uniproc
