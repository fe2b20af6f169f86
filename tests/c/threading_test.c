/* One plan and one thread pool under two threads, each with its own last error. */
#include <pthread.h>

#include "check.h"

enum { kRounds = 20 };

struct worker {
  const tessera_plan* plan;
  tessera_executor* executor;
  int number;
};

static void* work(void* argument) {
  const struct worker* worker = argument;
  struct problem* p = malloc(sizeof *p);
  size_t bytes = 0;
  CHECK(p != NULL);
  CHECK(tessera_last_error()[0] == '\0');
  CHECK_OK(tessera_plan_workspace_bytes(worker->plan, &bytes, NULL));
  void* workspace = aligned_alloc(64, bytes / 64 * 64 + 64);
  CHECK(workspace != NULL);
  const tessera_run run = {.struct_size = sizeof run,
                           .workspace = workspace,
                           .workspace_bytes = bytes,
                           .executor = worker->executor};
  char message[32];
  snprintf(message, sizeof message, "dtype: %d", 100 + worker->number);
  for (int round = 0; round < kRounds; ++round) {
    const char* name = NULL;
    problem_init(p);
    CHECK_FAILS(tessera_dtype_name(100 + worker->number, &name), TESSERA_INVALID_ARGUMENT, message);
    CHECK_OK(tessera_plan_forward(worker->plan, &p->inputs, &p->outputs, &run));
    problem_check(p, NULL, 0);
    CHECK(strstr(tessera_last_error(), message) != NULL);
  }
  free(workspace);
  free(p);
  return NULL;
}

int main(void) {
  static struct problem p;
  problem_init(&p);
  tessera_executor* executor = NULL;
  CHECK_OK(tessera_executor_create_thread_pool(2, &executor));
  const tessera_plan_options options = {.struct_size = sizeof options, .executor = executor};
  tessera_plan* plan = NULL;
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, &options, &plan));
  struct worker workers[2];
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) {
    workers[i] = (struct worker){.plan = plan, .executor = executor, .number = i};
    CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
  }
  for (int i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(tessera_last_error()[0] == '\0');
  tessera_plan_destroy(plan);
  tessera_executor_destroy(executor);
  return 0;
}
