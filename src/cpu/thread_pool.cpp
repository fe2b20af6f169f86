// The built-in executor: a pool of threads that runs one group of tasks at a time.
//
// A short attention takes less time than waking a thread through the kernel, so a thread that has
// nothing to do first looks for more for a while, and lets others have its CPU between two looks;
// then it sleeps.
//
// Task i belongs to thread i as long as that one comes for it in time: whoever works on the same
// tensors again finds its share in its own caches. A task is taken by writing the group's number
// into its slot. Groups are numbered upwards, and a group cannot end, nor its data change, before
// every slot of it has been taken and worked off; so a thread that comes late takes nothing.
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

/// The current group in one word: its number, and how many slots it has.
struct Ticket {
  static constexpr int kBits = 16;

  std::uint64_t word = 0;

  std::uint64_t group() const { return word >> kBits; }
  int slots() const { return static_cast<int>(word & ((1u << kBits) - 1)); }
  Ticket next(int slots) const {
    return {(group() + 1) << kBits | static_cast<std::uint64_t>(slots)};
  }
};

/// The number of the last group whose task here was taken.
struct alignas(64) Slot {
  std::atomic<std::uint64_t> group{0};
};

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads)
      : concurrency_(std::min(threads, kMostThreads)),
        slots_(static_cast<std::size_t>(concurrency_)) {
    workers_.reserve(slots_.size() - 1);
    for (int i = 1; i < concurrency_; ++i) workers_.emplace_back([this, i] { work(i); });
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
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    const int slots = std::min(count, concurrency_);
    unfinished_.store(slots, std::memory_order_relaxed);
    ticket_ = Ticket{ticket_}.next(slots).word;
    wake_sleepers(slots - 1);
    run_tasks(0);
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

  /// Takes slots of the current group, its own first, until none is left.
  void run_tasks(int own) {
    const Ticket ticket{ticket_};
    const int slots = ticket.slots();
    for (int i = 0; i < slots; ++i) {
      const int slot = own < slots ? (own + i) % slots : i;
      std::atomic<std::uint64_t>& taken = slots_[static_cast<std::size_t>(slot)].group;
      std::uint64_t last = taken;
      if (last >= ticket.group() || !taken.compare_exchange_strong(last, ticket.group())) continue;
      const auto task = task_.load(std::memory_order_relaxed);
      void* const context = context_.load(std::memory_order_relaxed);
      const int count = count_.load(std::memory_order_relaxed);
      // More tasks than threads: a slot stands for several.
      for (int index = slot; index < count; index += slots) task(context, index);
      if (--unfinished_ == 0 && caller_sleeps_) {
        { const std::lock_guard lock(mutex_); }
        done_.notify_one();
      }
    }
  }

  void work(int own) {
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
      run_tasks(own);
    }
  }

  static constexpr int kMostThreads = (1 << Ticket::kBits) - 1;

  const int concurrency_;
  std::vector<Slot> slots_;
  std::mutex busy_;  // held by the caller whose group is running
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<void (*)(void*, int)> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> count_{0};
  std::atomic<int> unfinished_{0};  // slots
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
