// The built-in executor: a pool of threads that runs one group of tasks at a time.
//
// A short attention takes less time than waking a thread through the kernel, so a thread that has
// nothing to do first looks for more for a while, and lets others have its CPU between two looks;
// then it sleeps. All that a look needs is one word: the group's number, how many tasks it has and
// which is next. Whoever raises the next task by one owns the task, and the group cannot end, nor
// its data change, before that task has.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/cpu_info.hpp"
#include "tessera/executor.hpp"

namespace tessera {
namespace {

/// How long to look for work, or for the end of a group, before sleeping.
constexpr std::chrono::microseconds kPatience{100};

/// Calls `found` until it returns true or patience ends; returns whether it did.
template <class Found>
bool look_for(Found&& found) {
  if (found()) return true;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  do {
    std::this_thread::yield();
    if (found()) return true;
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// The state of the current group in one word.
struct Ticket {
  static constexpr int kBits = 20;  ///< Of a number of tasks.
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << kBits) - 1;
  static constexpr int kMostTasks = static_cast<int>(kMask);

  std::uint64_t word = 0;

  std::uint64_t group() const { return word >> (2 * kBits); }
  int count() const { return static_cast<int>(word >> kBits & kMask); }
  int next() const { return static_cast<int>(word & kMask); }
  Ticket new_group(int tasks) const {
    return {(group() + 1) << (2 * kBits) | static_cast<std::uint64_t>(tasks) << kBits};
  }
};

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
    if (count <= 1 || count > Ticket::kMostTasks || workers_.empty() || !busy.owns_lock()) {
      for (int i = 0; i < count; ++i) task(context, i);
      return;
    }
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    unfinished_.store(count, std::memory_order_relaxed);
    ticket_ = Ticket{ticket_}.new_group(count).word;
    wake_sleepers(count - 1);
    run_tasks();
    if (look_for([this] { return unfinished_ == 0; })) return;
    std::unique_lock lock(mutex_);
    caller_sleeps_ = true;
    done_.wait(lock, [this] { return unfinished_ == 0; });
    caller_sleeps_ = false;
  }

 private:
  /// Who is about to sleep says so and then looks at the ticket once more; who makes a new ticket
  /// looks for sleepers afterwards. So one of the two sees the other.
  void wake_sleepers(int wanted) {
    const int sleepers = sleepers_;
    if (sleepers == 0) return;
    { const std::lock_guard lock(mutex_); }
    for (int i = 0; i < std::min(wanted, sleepers); ++i) wake_.notify_one();
  }

  /// Takes tasks of the current group until none is left.
  void run_tasks() {
    std::uint64_t word = ticket_;
    while (Ticket{word}.next() < Ticket{word}.count()) {
      if (!ticket_.compare_exchange_weak(word, word + 1)) continue;
      const auto task = task_.load(std::memory_order_relaxed);
      task(context_.load(std::memory_order_relaxed), Ticket{word}.next());
      if (--unfinished_ == 0 && caller_sleeps_) {
        { const std::lock_guard lock(mutex_); }
        done_.notify_one();
      }
      word = ticket_;
    }
  }

  void work() {
    std::uint64_t seen = 0;
    const auto is_new = [&] { return Ticket{ticket_}.group() != seen; };
    for (;;) {
      if (!look_for([&] { return stopping_ || is_new(); })) {
        std::unique_lock lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [&] { return stopping_ || is_new(); });
        --sleepers_;
      }
      if (stopping_) return;
      seen = Ticket{ticket_}.group();
      run_tasks();
    }
  }

  const int concurrency_;
  std::mutex busy_;  // held by the caller whose group is running
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<void (*)(void*, int)> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> unfinished_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;  // held to fall asleep, and between a change and its announcement
  std::condition_variable wake_;
  std::condition_variable done_;
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
