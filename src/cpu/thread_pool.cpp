// The built-in executor: a pool of threads that runs one group of tasks at a time.
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/cpu_info.hpp"
#include "tessera/executor.hpp"

namespace tessera {
namespace {

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) : concurrency_(threads) {
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~ThreadPool() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int concurrency() const override { return concurrency_; }

  void parallel(int count, void (*task)(void*, int), void* context) override {
    std::unique_lock busy(busy_, std::try_to_lock);
    if (count <= 1 || workers_.empty() || !busy.owns_lock()) {
      for (int i = 0; i < count; ++i) task(context, i);
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      group_ = {task, context, count};
      next_ = 0;
      unfinished_ = count;
      ++generation_;
    }
    if (count - 1 < static_cast<int>(workers_.size())) {
      for (int i = 1; i < count; ++i) wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    std::unique_lock lock(mutex_);
    run_tasks(lock);
    done_.wait(lock, [this] { return unfinished_ == 0; });
  }

 private:
  struct Group {
    void (*task)(void*, int) = nullptr;
    void* context = nullptr;
    int count = 0;
  };

  /// Takes tasks of the current group until none is left; `lock` is held on entry and exit.
  void run_tasks(std::unique_lock<std::mutex>& lock) {
    while (next_ < group_.count) {
      const int index = next_++;
      const Group group = group_;
      lock.unlock();
      group.task(group.context, index);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    std::uint64_t seen = 0;
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      run_tasks(lock);
    }
  }

  const int concurrency_;
  std::mutex busy_;  // held by the caller whose group is running
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Group group_;
  int next_ = 0;
  int unfinished_ = 0;
  std::uint64_t generation_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

int default_threads() {
  if (const char* variable = std::getenv("TESSERA_THREADS"); variable != nullptr) {
    const int threads = std::atoi(variable);
    if (threads > 0) return threads;
  }
  return cpu::cpu_info().threads;
}

}  // namespace

std::unique_ptr<Executor> make_thread_pool(int threads) {
  return std::make_unique<ThreadPool>(threads > 0 ? threads : cpu::cpu_info().threads);
}

Executor& default_executor() {
  // Never destroyed: a run may still be under way on another thread when the process exits.
  static Executor* const kExecutor = new ThreadPool(default_threads());
  return *kExecutor;
}

}  // namespace tessera
