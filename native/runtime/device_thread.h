// A device and the one thread that owns it: all that can block, from opening it to the forward
// pass, is a task on that thread, carried out in the order enqueued.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "ops/ops.h"
#include "runtime/queue.h"
#include "runtime/stoppable.h"

namespace uniproc {

// What keeps memory on a device. The device has it let go, on its own thread, at the latest when it
// closes.
class Resident {
 public:
  virtual ~Resident() = default;
  virtual void release() noexcept = 0;
};

class DeviceThread : public Stoppable {
 public:
  using Work = std::function<void(Ops&)>;
  // Called once for each task, whatever becomes of it, mostly on the device's thread: with null, or
  // with what the work threw. Must not throw.
  using Done = std::function<void(std::exception_ptr)>;
  DeviceThread(std::string kind, int index, int numThreads);
  ~DeviceThread() override;

  // Starts the thread, which opens the device. Throws INVALID_STATE a second time. Should opening
  // fail, every task fails with that error.
  void open();

  // After work has thrown DEVICE_FAILED every later task fails with that same error; other errors
  // are their task's alone. INVALID_STATE before `open`, SHUT_DOWN after `stop`.
  void enqueue(Work work, Done done = nullptr);

  // The device keeps a resident until it is evicted or the device closes. `evict` enqueues its
  // release, which is carried out on a failed device too. `attach` throws where `enqueue` fails.
  void attach(std::shared_ptr<Resident> resident);
  void evict(const std::shared_ptr<Resident>& resident, Done done);

  // Tasks not begun are run by `stop`, and fail with SHUT_DOWN after `abandon`.
  void stop(std::function<void()> stopped) override;
  void abandon() override;
  void join() override;

  // Set by `abandon`: long work looks at it and gives up.
  std::stop_token abandoned() const { return abandoned_.get_token(); }

 private:
  struct Task {
    Work work;
    Done done;
    std::shared_ptr<Resident> evicted = nullptr;  // in place of work
  };

  std::unique_ptr<Ops> openBackend() const;
  void run();
  void carryOut(const Task& task);
  void letGo(const std::shared_ptr<Resident>& resident);
  void push(Task task);
  std::exception_ptr whyClosed();

  const std::string kind_;
  const int index_;
  const int numThreads_;

  Queue<Task> queue_;
  std::stop_source abandoned_;
  std::mutex mutex_;  // of the four below
  bool opened_ = false;
  bool stopping_ = false;
  std::function<void()> stopped_;
  std::vector<std::shared_ptr<Resident>> residents_;

  // The device thread's own.
  std::unique_ptr<Ops> ops_;
  std::exception_ptr failure_;

  std::thread thread_;
};

}  // namespace uniproc
