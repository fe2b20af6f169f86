// C++ callbacks that throw: no exception comes back through the C interface.
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "tessera/tessera.h"

namespace {

int throw_runtime_error(void*, int64_t, int64_t, int64_t, int64_t) {
  throw std::runtime_error("out of\nthe callback");
}
int throw_bad_alloc(void*, int64_t, int64_t, int64_t, int64_t) { throw std::bad_alloc(); }
int throw_int(void*, int64_t, int64_t, int64_t, int64_t) { throw 1; }
int throw_long(void*, int64_t, int64_t, int64_t, int64_t) {
  std::string text(1023, 'x');
  throw std::runtime_error(text + "\u221e and more");
}
int one(void*) { return 1; }
void parallel(void*, int, tessera_task, void*) { throw std::runtime_error("from parallel"); }
void destroy(void*) { throw std::runtime_error("from destroy"); }

int failures = 0;

void expect(tessera_status actual, tessera_status expected, std::string_view text) {
  const std::string_view message = tessera_last_error();
  if (actual == expected && message.find(text) != message.npos &&
      message.find('\n') == message.npos) {
    return;
  }
  std::fprintf(stderr, "status %d, message %s\n", actual, tessera_last_error());
  ++failures;
}

}  // namespace

int main() {
  tessera_block_shape shape{};
  shape.struct_size = sizeof(shape);
  shape.seq_q = shape.seq_kv = 32;
  tessera_block_mask* mask = nullptr;
  const auto build = [&](tessera_attend attend) {
    return tessera_block_mask_from_predicate(&shape, 1, 1, attend, nullptr, &mask);
  };
  expect(build(throw_runtime_error), TESSERA_INTERNAL, "out of the callback");
  expect(build(throw_bad_alloc), TESSERA_OUT_OF_MEMORY, "memory");
  expect(build(throw_int), TESSERA_INTERNAL, "unknown type");
  // Cut to the buffer, and not inside the three bytes of a character.
  expect(build(throw_long), TESSERA_INTERNAL, "xxx");
  if (std::string_view(tessera_last_error()).size() != 1023) ++failures;

  tessera_executor_callbacks callbacks{};
  callbacks.struct_size = sizeof(callbacks);
  callbacks.concurrency = one;
  callbacks.parallel = parallel;
  callbacks.destroy = destroy;
  tessera_executor* executor = nullptr;
  expect(tessera_executor_create(&callbacks, &executor), TESSERA_OK, "");
  int nothing = 0;
  expect(tessera_executor_parallel(
             executor, 1, [](void*, int) {}, &nothing),
         TESSERA_INTERNAL, "from parallel");
  tessera_executor_destroy(executor);
  return failures == 0 && mask == nullptr ? 0 : 1;
}
