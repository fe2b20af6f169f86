/* Executors: the caller's own through callbacks, thread pools, the default one. */
#include "check.h"

struct counter {
  int concurrency;
  int parallel_calls;
  int tasks;
  int destroyed;
};

static int concurrency(void* context) { return ((struct counter*)context)->concurrency; }

/* Backwards, to show that order does not matter. */
static void parallel(void* context, int count, tessera_task task, void* task_context) {
  struct counter* counter = context;
  ++counter->parallel_calls;
  counter->tasks += count;
  for (int i = count - 1; i >= 0; --i) task(task_context, i);
}

static void destroy(void* context) { ++((struct counter*)context)->destroyed; }

static void mark(void* context, int index) { ((int*)context)[index] += 1; }

static void callbacks(void) {
  struct counter counter = {.concurrency = 3};
  tessera_executor_callbacks functions = {.struct_size = sizeof functions,
                                          .context = &counter,
                                          .concurrency = concurrency,
                                          .parallel = parallel,
                                          .destroy = destroy};
  tessera_executor* executor = NULL;
  CHECK_OK(tessera_executor_create(&functions, &executor));
  memset(&functions, 0, sizeof functions); /* they were copied */
  int n = 0;
  CHECK_OK(tessera_executor_concurrency(executor, &n));
  CHECK(n == 3);

  int marks[5] = {0};
  CHECK_OK(tessera_executor_parallel(executor, 5, mark, marks));
  for (int i = 0; i < 5; ++i) CHECK(marks[i] == 1);
  CHECK_OK(tessera_executor_parallel(executor, 0, mark, marks));
  CHECK(counter.parallel_calls == 1);

  static struct problem p;
  problem_init(&p);
  const tessera_plan_options options = {.struct_size = sizeof options,
                                        .passes = TESSERA_FORWARD | TESSERA_BACKWARD,
                                        .executor = executor};
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, &options));
  CHECK(counter.parallel_calls > 1);
  CHECK_OK(tessera_attention_backward(&p.attention, &p.inputs, &p.outputs, &p.d_outputs,
                                      &p.d_inputs, &options));
  problem_check(&p, NULL, 1);

  tessera_plan* plan = NULL;
  size_t forward = 0;
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, &options, &plan));
  CHECK_OK(tessera_plan_workspace_bytes(plan, &forward, NULL));
  void* workspace = aligned_alloc(64, forward / 64 * 64 + 64);
  CHECK(workspace != NULL);
  const tessera_run run = {.struct_size = sizeof run,
                           .workspace = workspace,
                           .workspace_bytes = forward,
                           .executor = executor};
  const int before = counter.parallel_calls;
  CHECK_OK(tessera_plan_forward(plan, &p.inputs, &p.outputs, &run));
  CHECK(counter.parallel_calls > before);
  problem_check(&p, NULL, 1);
  free(workspace);
  tessera_plan_destroy(plan);

  CHECK(counter.destroyed == 0);
  tessera_executor_destroy(executor);
  CHECK(counter.destroyed == 1);
}

static void pools(void) {
  for (int threads = 0; threads <= 3; ++threads) {
    tessera_executor* pool = NULL;
    int n = 0;
    CHECK_OK(tessera_executor_create_thread_pool(threads, &pool));
    CHECK_OK(tessera_executor_concurrency(pool, &n));
    CHECK(threads == 0 ? n >= 1 : n == threads);
    int marks[100] = {0};
    CHECK_OK(tessera_executor_parallel(pool, 100, mark, marks));
    for (int i = 0; i < 100; ++i) CHECK(marks[i] == 1);
    static struct problem p;
    problem_init(&p);
    const tessera_plan_options options = {.struct_size = sizeof options, .executor = pool};
    CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, &options));
    problem_check(&p, NULL, 0);
    tessera_executor_destroy(pool);
  }
  tessera_executor* first = NULL;
  tessera_executor* second = NULL;
  CHECK_OK(tessera_executor_default(&first));
  tessera_executor_destroy(first);
  CHECK_OK(tessera_executor_default(&second));
  CHECK(first == second);
  int n = 0;
  CHECK_OK(tessera_executor_concurrency(second, &n));
  CHECK(n >= 1);
}

static void errors(void) {
  struct counter counter = {.concurrency = 1};
  const tessera_executor_callbacks good = {.struct_size = sizeof good,
                                           .context = &counter,
                                           .concurrency = concurrency,
                                           .parallel = parallel,
                                           .destroy = destroy};
  tessera_executor* executor = NULL;
  int n = 0;
  CHECK_FAILS(tessera_executor_create(NULL, &executor), TESSERA_INVALID_ARGUMENT,
              "callbacks: null");
  CHECK_FAILS(tessera_executor_create(&good, NULL), TESSERA_INVALID_ARGUMENT, "executor: null");
  tessera_executor_callbacks bad = good;
  bad.concurrency = NULL;
  CHECK_FAILS(tessera_executor_create(&bad, &executor), TESSERA_INVALID_ARGUMENT,
              "concurrency: null");
  bad = good;
  bad.parallel = NULL;
  CHECK_FAILS(tessera_executor_create(&bad, &executor), TESSERA_INVALID_ARGUMENT, "parallel: null");
  CHECK(executor == NULL && counter.destroyed == 0);
  CHECK_FAILS(tessera_executor_create_thread_pool(-1, &executor), TESSERA_INVALID_ARGUMENT,
              "threads: -1");
  CHECK_FAILS(tessera_executor_create_thread_pool(1, NULL), TESSERA_INVALID_ARGUMENT,
              "executor: null");
  CHECK_FAILS(tessera_executor_default(NULL), TESSERA_INVALID_ARGUMENT, "executor: null");
  CHECK_FAILS(tessera_executor_concurrency(NULL, &n), TESSERA_INVALID_ARGUMENT, "executor: null");
  CHECK_FAILS(tessera_executor_parallel(NULL, 1, mark, &n), TESSERA_INVALID_ARGUMENT,
              "executor: null");
  CHECK_OK(tessera_executor_create(&good, &executor));
  CHECK_FAILS(tessera_executor_concurrency(executor, NULL), TESSERA_INVALID_ARGUMENT,
              "concurrency: null");
  CHECK_FAILS(tessera_executor_parallel(executor, 1, NULL, &n), TESSERA_INVALID_ARGUMENT,
              "task: null");
  CHECK_FAILS(tessera_executor_parallel(executor, -1, mark, &n), TESSERA_INVALID_ARGUMENT,
              "count: -1");

  /* A concurrency that makes no sense counts as one. */
  counter.concurrency = -4;
  CHECK_OK(tessera_executor_concurrency(executor, &n));
  CHECK(n == 1);
  tessera_executor_destroy(executor);
  tessera_executor_destroy(NULL);

  /* Without destroy, nothing is called. */
  bad = good;
  bad.destroy = NULL;
  CHECK_OK(tessera_executor_create(&bad, &executor));
  tessera_executor_destroy(executor);
  CHECK(counter.destroyed == 1);
}

int main(void) {
  callbacks();
  pools();
  errors();
  return 0;
}
