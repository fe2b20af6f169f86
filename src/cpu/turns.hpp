// The order in which the parts of heads take their turns, without barriers.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <thread>

namespace tessera::cpu {

/// Where a part of a head stands.
struct alignas(64) PartState {
  std::atomic<std::int64_t> done{0};   ///< Turns it has finished.
  std::atomic<std::int64_t> taken{0};  ///< Turns that somebody has begun.
};

/// Turn t of part p follows turn t − 1 of part p, which had its keys, and of part p + 1, which had
/// its tiles. Whoever has nothing to do takes any turn that may begin. One of the turns with the
/// lowest number always may, and a turn that has begun is being worked on; so this ends with any
/// number of threads, also with one that runs all workers in succession.
class Turns {
 public:
  /// `states` is memory for heads · parts.
  Turns(PartState* states, std::int64_t heads, std::int64_t parts)
      : states_(states), count_(heads * parts), parts_(parts), left_(heads * parts * parts) {
    for (std::int64_t i = 0; i < count_; ++i) new (states_ + i) PartState;
  }

  /// Runs body(head, part, turn) for turns that may begin until there are no more. A worker begins
  /// at a part of its own and stays with a part while it can: its keys are then in its caches.
  template <class Body>
  void work(int worker, int workers, Body&& body) {
    std::int64_t at = count_ * worker / workers;
    while (left_.load(std::memory_order_relaxed) > 0) {
      bool found = false;
      for (std::int64_t i = 0; i < count_ && !found; ++i) {
        const std::int64_t index = (at + i) % count_;
        const std::int64_t turn = take(index);
        if (turn < 0) continue;
        body(index / parts_, index % parts_, turn);
        states_[index].done.store(turn + 1, std::memory_order_release);
        left_.fetch_sub(1, std::memory_order_relaxed);
        at = index;
        found = true;
      }
      if (!found) std::this_thread::yield();
    }
  }

 private:
  /// The turn of a part that is now the caller's, or −1.
  std::int64_t take(std::int64_t index) {
    PartState& state = states_[index];
    const std::int64_t head = index / parts_ * parts_;
    const PartState& next = states_[head + (index - head + 1) % parts_];
    std::int64_t turn = state.done.load(std::memory_order_acquire);
    if (turn == parts_ || next.done.load(std::memory_order_acquire) < turn) return -1;
    const bool mine = state.taken.compare_exchange_strong(turn, turn + 1);
    return mine ? turn : -1;
  }

  PartState* states_;
  const std::int64_t count_;
  const std::int64_t parts_;
  std::atomic<std::int64_t> left_;
};

}  // namespace tessera::cpu
