/* Bad arguments: a status, one line that names the argument, and nothing written. */
#include "check.h"

static struct problem p;

/* The one-call forward must fail as told and leave o as it was. */
#define CHECK_FORWARD_FAILS(status, text)                                                     \
  do {                                                                                        \
    CHECK_FAILS(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL), status, \
                text);                                                                        \
    CHECK(p.o[0] != p.o[0] && p.o[kO - 1] != p.o[kO - 1]);                                    \
    problem_init(&p);                                                                         \
  } while (0)

static void null_structs(void) {
  tessera_plan* plan = NULL;
  const tessera_plan_options options = {.struct_size = sizeof options,
                                        .passes = TESSERA_FORWARD | TESSERA_BACKWARD};
  CHECK_FAILS(tessera_plan_create(NULL, &p.inputs, NULL, &plan), TESSERA_INVALID_ARGUMENT,
              "attention: null");
  CHECK_FAILS(tessera_plan_create(&p.attention, NULL, NULL, &plan), TESSERA_INVALID_ARGUMENT,
              "inputs: null");
  CHECK_FAILS(tessera_plan_create(&p.attention, &p.inputs, NULL, NULL), TESSERA_INVALID_ARGUMENT,
              "plan: null");
  CHECK(plan == NULL);
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, &options, &plan));
  CHECK_FAILS(tessera_plan_forward(NULL, &p.inputs, &p.outputs, NULL), TESSERA_INVALID_ARGUMENT,
              "plan: null");
  CHECK_FAILS(tessera_plan_forward(plan, NULL, &p.outputs, NULL), TESSERA_INVALID_ARGUMENT,
              "inputs: null");
  CHECK_FAILS(tessera_plan_forward(plan, &p.inputs, NULL, NULL), TESSERA_INVALID_ARGUMENT,
              "outputs: null");
  CHECK_FAILS(tessera_plan_backward(NULL, &p.inputs, &p.outputs, &p.d_outputs, &p.d_inputs, NULL),
              TESSERA_INVALID_ARGUMENT, "plan: null");
  CHECK_FAILS(tessera_plan_backward(plan, &p.inputs, &p.outputs, NULL, &p.d_inputs, NULL),
              TESSERA_INVALID_ARGUMENT, "d_outputs: null");
  CHECK_FAILS(tessera_plan_backward(plan, &p.inputs, &p.outputs, &p.d_outputs, NULL, NULL),
              TESSERA_INVALID_ARGUMENT, "d_inputs: null");
  size_t bytes = 0;
  const char* text = NULL;
  CHECK_FAILS(tessera_plan_workspace_bytes(NULL, &bytes, NULL), TESSERA_INVALID_ARGUMENT,
              "plan: null");
  CHECK_FAILS(tessera_plan_implementation(NULL, &text, NULL), TESSERA_INVALID_ARGUMENT,
              "plan: null");
  CHECK_FAILS(tessera_plan_explain(NULL, &text), TESSERA_INVALID_ARGUMENT, "plan: null");
  CHECK_FAILS(tessera_plan_explain(plan, NULL), TESSERA_INVALID_ARGUMENT, "text: null");
  tessera_plan_destroy(plan);
  tessera_plan_destroy(NULL);
  CHECK_FAILS(tessera_attention_forward(NULL, &p.inputs, &p.outputs, NULL),
              TESSERA_INVALID_ARGUMENT, "attention: null");
  CHECK_FAILS(
      tessera_attention_backward(&p.attention, &p.inputs, &p.outputs, NULL, &p.d_inputs, NULL),
      TESSERA_INVALID_ARGUMENT, "d_outputs: null");

  /* A plan without a backward pass says so. */
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, NULL, &plan));
  CHECK_OK(tessera_plan_workspace_bytes(plan, NULL, &bytes));
  CHECK(bytes == 0);
  CHECK_OK(tessera_plan_implementation(plan, NULL, &text));
  CHECK(text[0] == '\0');
  CHECK_FAILS(tessera_plan_backward(plan, &p.inputs, &p.outputs, &p.d_outputs, &p.d_inputs, NULL),
              TESSERA_INVALID_ARGUMENT, "backward");
  tessera_plan_destroy(plan);
  CHECK(p.o[0] != p.o[0] && p.d_q[0] != p.d_q[0]);
}

static void tensors(void) {
  p.inputs.q = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q: null");
  p.inputs.k = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "k: null");
  p.inputs.v = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v: null");
  p.outputs.o = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "o: null");
  p.tq.data = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q");
  p.to.data = NULL;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "o");
  p.tq.rank = 0;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q: rank 0, expected 1 to 4");
  p.tk.rank = 5;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "k: rank 5, expected 1 to 4");
  p.tk.rank = -1;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "k: rank -1");
  p.tk.rank = 2;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "k");
  p.tv.dtype = 6;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v.dtype: 6");
  p.tv.dtype = -1;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v.dtype: -1");
  p.tv.dtype = 256; /* would be f32 if it were cut to a byte */
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v.dtype: 256");
  p.tv.dtype = TESSERA_F16;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v: dtype f16");
  p.tv.device_type = 2;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v.device_type: 2");
  p.tv.device_type = TESSERA_CUDA;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "v: device");
  p.tk.size[1] = 3;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "k");
  p.tq.size[2] = INT64_MAX;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q");
  p.tq.stride[3] = 2;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q: last stride 2");
  p.to.data = p.q;
  p.to.size[3] = kHeadDim;
  p.tv.size[3] = kHeadDim;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "o: overlaps q");

  const int64_t too_many[] = {1, 2, 3, 4, 5};
  p.tq = tessera_contiguous(p.q, TESSERA_F32, 5, too_many);
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q: rank 5");
  p.tq = tessera_contiguous(p.q, TESSERA_F32, -2, too_many);
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q: rank -2");
  const int64_t huge[] = {INT64_MAX, INT64_MAX, INT64_MAX, 8};
  p.tq = tessera_contiguous(p.q, TESSERA_F32, 4, huge);
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "q");

  /* Optional tensors are checked alike. */
  tessera_tensor bias = p.tq;
  bias.rank = 9;
  p.inputs.bias = &bias;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "bias: rank 9");
  p.tlse.dtype = TESSERA_I32;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "lse");
}

static void description(void) {
  p.attention.has_scale = 1;
  p.attention.scale = NAN;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "scale");
  p.attention.scale = 0.5;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "scale: 0.5 with has_scale 0");
  p.attention.scale = NAN;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "has_scale");
  p.attention.window_left = 4;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "window: 4,0 with has_window 0");
  p.attention.has_window = 1;
  p.attention.window_left = -2;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "window");
  p.attention.dropout_p = 1;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "dropout_p");
  p.attention.softcap = -1;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "softcap");
  p.attention.alignment = 2;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "alignment: 2");
  p.attention.precision = -1;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "precision: -1");
  p.attention.precision = TESSERA_ADAPTIVE;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "adaptive_plan: absent");
  tessera_quantization pieces = {.struct_size = sizeof pieces, .granularity = 6};
  p.attention.quantization = &pieces;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "quantization.granularity: 6");
  pieces.granularity = TESSERA_SCALES_PER_TOKEN;
  pieces.reserved = 1;
  p.attention.quantization = &pieces;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "quantization.reserved: 1");
  pieces.struct_size = 0;
  p.attention.quantization = &pieces;
  CHECK_FORWARD_FAILS(TESSERA_INVALID_ARGUMENT, "quantization.struct_size: 0");
  tessera_adaptive_plan* plan = NULL;
  CHECK_FAILS(tessera_adaptive_plan_parse("{}", NULL, &plan), TESSERA_INVALID_ARGUMENT, "format");
  CHECK_FAILS(tessera_adaptive_plan_parse("{}", NULL, NULL), TESSERA_INVALID_ARGUMENT, "plan");
  CHECK_FAILS(tessera_adaptive_plan_load("/no/such/file", "toy", &plan), TESSERA_INVALID_ARGUMENT,
              "/no/such/file");
}

static void options(void) {
  tessera_plan* plan = NULL;
  tessera_plan_options options = {.struct_size = sizeof options, .passes = 4};
  CHECK_FAILS(tessera_plan_create(&p.attention, &p.inputs, &options, &plan),
              TESSERA_INVALID_ARGUMENT, "passes: 4");
  options.passes = 0;
  options.threads = -1;
  CHECK_FAILS(tessera_plan_create(&p.attention, &p.inputs, &options, &plan),
              TESSERA_INVALID_ARGUMENT, "threads: -1");
  options.threads = 0;
  options.implementation = "no_such_row";
  CHECK_FAILS(tessera_plan_create(&p.attention, &p.inputs, &options, &plan),
              TESSERA_INVALID_ARGUMENT, "no_such_row");
  CHECK(plan == NULL);

  tessera_run run = {.struct_size = sizeof run, .workspace = (char*)&run + 1};
  CHECK_OK(tessera_plan_create(&p.attention, &p.inputs, NULL, &plan));
  run.workspace_bytes = SIZE_MAX / 2;
  CHECK_FAILS(tessera_plan_forward(plan, &p.inputs, &p.outputs, &run), TESSERA_INVALID_ARGUMENT,
              "workspace");
  tessera_plan_destroy(plan);
}

static void listings(void) {
  size_t count = 0;
  size_t bytes = 0;
  const char* text = NULL;
  tessera_implementation row = {.struct_size = sizeof row};
  CHECK_FAILS(tessera_implementation_count(NULL), TESSERA_INVALID_ARGUMENT, "count: null");
  CHECK_OK(tessera_implementation_count(&count));
  CHECK_FAILS(tessera_implementation_get(count, &row), TESSERA_INVALID_ARGUMENT, "index");
  CHECK_FAILS(tessera_implementation_get(0, NULL), TESSERA_INVALID_ARGUMENT, "row: null");
  CHECK_FAILS(tessera_device_count(NULL), TESSERA_INVALID_ARGUMENT, "count: null");
  CHECK_OK(tessera_device_count(&count));
  CHECK(count >= 1);
  CHECK_FAILS(tessera_device_describe(count, &text), TESSERA_INVALID_ARGUMENT, "index");
  CHECK_FAILS(tessera_device_describe(0, NULL), TESSERA_INVALID_ARGUMENT, "line: null");
  CHECK_OK(tessera_device_describe(0, &text));
  CHECK(strncmp(text, "cpu", 3) == 0);

  const char* names[] = {"f32", "f16", "bf16", "f64", "i32", "bool"};
  const size_t sizes[] = {4, 2, 2, 8, 4, 1};
  for (int dtype = 0; dtype < 6; ++dtype) {
    CHECK_OK(tessera_dtype_name(dtype, &text));
    CHECK(strcmp(text, names[dtype]) == 0);
    CHECK_OK(tessera_dtype_size(dtype, &bytes));
    CHECK(bytes == sizes[dtype]);
  }
  CHECK_FAILS(tessera_dtype_name(6, &text), TESSERA_INVALID_ARGUMENT, "dtype: 6");
  CHECK_FAILS(tessera_dtype_name(0, NULL), TESSERA_INVALID_ARGUMENT, "name: null");
  CHECK_FAILS(tessera_dtype_size(-1, &bytes), TESSERA_INVALID_ARGUMENT, "dtype: -1");
  CHECK_FAILS(tessera_dtype_size(0, NULL), TESSERA_INVALID_ARGUMENT, "bytes: null");
  int major = 0;
  int minor = 0;
  int patch = 0;
  CHECK(sscanf(tessera_version(), "%d.%d.%d", &major, &minor, &patch) == 3);
}

int main(void) {
  CHECK(tessera_last_error()[0] == '\0');
  problem_init(&p);
  null_structs();
  problem_init(&p);
  tensors();
  description();
  options();
  listings();

  /* A success leaves the last message alone. */
  CHECK_FAILS(tessera_dtype_size(77, NULL), TESSERA_INVALID_ARGUMENT, "bytes: null");
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  CHECK(strstr(tessera_last_error(), "bytes: null") != NULL);
  return 0;
}
