/* Programs built against an older or a newer header than the library's. */
#include "check.h"

static struct problem p;

/* As a later header might have it: one more member at the end. */
struct newer_attention {
  tessera_attention known;
  int64_t added;
};

struct newer_implementation {
  tessera_implementation known;
  const char* added;
};

static tessera_status forward(const tessera_attention* attention) {
  return tessera_attention_forward(attention, &p.inputs, &p.outputs, NULL);
}

static void older(void) {
  static float expected[kO];
  CHECK_OK(forward(&p.attention));
  memcpy(expected, p.o, sizeof expected);

  /* A header that ended before `softcap`: what follows in memory is not the library's. */
  tessera_attention old = p.attention;
  old.struct_size = offsetof(tessera_attention, softcap);
  old.softcap = 0.001;
  old.dropout_p = NAN;
  old.precision = 99;
  CHECK_OK(forward(&old));
  CHECK(memcmp(expected, p.o, sizeof expected) == 0);

  /* The oldest thinkable one has nothing but its size. */
  memset(&old, 0xff, sizeof old);
  old.struct_size = sizeof old.struct_size;
  CHECK_OK(forward(&old));
  CHECK(memcmp(expected, p.o, sizeof expected) == 0);

  tessera_tensor q = p.tq;
  q.struct_size = offsetof(tessera_tensor, device_type);
  q.device_type = 55;
  p.inputs.q = &q;
  CHECK_OK(forward(&p.attention));
  p.inputs.q = &p.tq;

  /* Out structs: only what the caller has room for is written. */
  tessera_implementation row;
  memset(&row, 0x5a, sizeof row);
  row.struct_size = offsetof(tessera_implementation, unavailable);
  CHECK_OK(tessera_implementation_get(0, &row));
  CHECK(row.struct_size == offsetof(tessera_implementation, unavailable));
  CHECK(row.name[0] != '\0');
  unsigned char beyond[sizeof row.supports];
  memcpy(beyond, &row.supports, sizeof beyond);
  CHECK(beyond[0] == 0x5a && beyond[sizeof beyond - 1] == 0x5a);
}

static void newer(void) {
  struct newer_attention attention = {.known = p.attention};
  attention.known.struct_size = sizeof attention;
  CHECK_OK(forward(&attention.known));
  attention.added = 1;
  CHECK_FAILS(forward(&attention.known), TESSERA_UNSUPPORTED, "attention.struct_size");
  attention.added = INT64_MIN; /* a single bit, in the last byte */
  CHECK_FAILS(forward(&attention.known), TESSERA_UNSUPPORTED, "attention.struct_size");

  struct newer_implementation row = {.added = "left over"};
  row.known.struct_size = sizeof row;
  CHECK_OK(tessera_implementation_get(0, &row.known));
  CHECK(row.known.struct_size == sizeof row && row.known.name[0] != '\0' && row.added == NULL);
}

/* Sets struct_size of a copy of each struct and expects the call to name it. */
#define CHECK_SIZE_REJECTED(object, size, call, text)  \
  do {                                                 \
    const size_t kept = (object).struct_size;          \
    (object).struct_size = (size);                     \
    CHECK_FAILS(call, TESSERA_INVALID_ARGUMENT, text); \
    (object).struct_size = kept;                       \
  } while (0)

static void nonsense(void) {
  const size_t sizes[] = {0, 1, sizeof(size_t) + 1, 5000, SIZE_MAX};
  tessera_plan_options options = {.struct_size = sizeof options,
                                  .passes = TESSERA_FORWARD | TESSERA_BACKWARD};
  tessera_plan* plan = NULL;
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, &options, &plan));
  tessera_run run = {.struct_size = sizeof run};
  tessera_block_shape shape = {.struct_size = sizeof shape, .seq_q = kSeqQ, .seq_kv = kSeqKv};
  tessera_block_mask* mask = NULL;
  CHECK_OK(tessera_block_mask_butterfly(&shape, &mask));
  tessera_block_mask_view view = {.struct_size = sizeof view};
  CHECK_OK(tessera_block_mask_get_view(mask, &view));
  tessera_executor_callbacks callbacks = {.struct_size = sizeof callbacks};
  tessera_executor* executor = NULL;
  tessera_implementation row = {.struct_size = sizeof row};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    const size_t size = sizes[i];
    CHECK_SIZE_REJECTED(p.attention, size, forward(&p.attention), "attention.struct_size");
    CHECK_SIZE_REJECTED(p.inputs, size, forward(&p.attention), "inputs.struct_size");
    CHECK_SIZE_REJECTED(p.outputs, size, forward(&p.attention), "outputs.struct_size");
    CHECK_SIZE_REJECTED(p.tk, size, forward(&p.attention), "k.struct_size");
    CHECK_SIZE_REJECTED(options, size,
                        tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, &options),
                        "options.struct_size");
    CHECK_SIZE_REJECTED(p.d_outputs, size,
                        tessera_attention_backward(&p.attention, &p.inputs, &p.outputs,
                                                   &p.d_outputs, &p.d_inputs, NULL),
                        "d_outputs.struct_size");
    CHECK_SIZE_REJECTED(p.d_inputs, size,
                        tessera_attention_backward(&p.attention, &p.inputs, &p.outputs,
                                                   &p.d_outputs, &p.d_inputs, NULL),
                        "d_inputs.struct_size");
    CHECK_SIZE_REJECTED(run, size, tessera_plan_forward(plan, &p.inputs, &p.outputs, &run),
                        "run.struct_size");
    CHECK_SIZE_REJECTED(shape, size, tessera_block_mask_butterfly(&shape, &mask),
                        "shape.struct_size");
    CHECK_SIZE_REJECTED(view, size, tessera_block_mask_validate(&view), "view.struct_size");
    CHECK_SIZE_REJECTED(view, size, tessera_block_mask_get_view(mask, &view), "view.struct_size");
    CHECK_SIZE_REJECTED(callbacks, size, tessera_executor_create(&callbacks, &executor),
                        "callbacks.struct_size");
    CHECK_SIZE_REJECTED(row, size, tessera_implementation_get(0, &row), "row.struct_size");
  }
  tessera_block_mask_destroy(mask);
  tessera_plan_destroy(plan);
}

int main(void) {
  problem_init(&p);
  older();
  newer();
  nonsense();
  return 0;
}
