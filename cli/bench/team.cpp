#include "bench/team.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace tessera::cli::bench {
namespace {

using Clock = std::chrono::steady_clock;

#ifdef __linux__
std::vector<int> usable_cpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// A thread that cannot be tied to a CPU measures as well, only less steadily.
void tie_to_cpu(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}
#endif

}  // namespace

struct Team::Call {
  const std::function<void(int)>* task;
  std::atomic<int> arriving;
  std::atomic<int> running;
  std::vector<Clock::time_point> starts;
  std::vector<Clock::time_point> ends;
};

Team::Team(int threads) {
  for (int i = 0; i < threads; ++i) members_.emplace_back([this, i] { work(i); });
#ifdef __linux__
  const std::vector<int> cpus = usable_cpus();
  for (int i = 0; i < threads && !cpus.empty(); ++i) {
    tie_to_cpu(members_[i], cpus[i % cpus.size()]);
  }
#endif
}

Team::~Team() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& member : members_) member.join();
}

void Team::work(int index) {
  long seen = 0;
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ending_ || calls_ != seen; });
    if (ending_) return;
    seen = calls_;
    Call& call = *call_;
    lock.unlock();
    call.arriving.fetch_sub(1);
    while (call.arriving.load() > 0) std::this_thread::yield();
    call.starts[index] = Clock::now();
    (*call.task)(index);
    call.ends[index] = Clock::now();
    lock.lock();
    if (call.running.fetch_sub(1) == 1) changed_.notify_all();
  }
}

double Team::run(const std::function<void(int)>& task) {
  const int count = threads();
  Call call{&task, {count}, {count}, {}, {}};
  call.starts.resize(count);
  call.ends.resize(count);
  std::unique_lock lock(mutex_);
  call_ = &call;
  ++calls_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return call.running.load() == 0; });
  const Clock::time_point start = *std::min_element(call.starts.begin(), call.starts.end());
  const Clock::time_point end = *std::max_element(call.ends.begin(), call.ends.end());
  return std::chrono::duration<double>(end - start).count();
}

}  // namespace tessera::cli::bench
