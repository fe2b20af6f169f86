/* Plans, runs and one-call forms against plain loops, on every usable exact row of the table. */
#include "check.h"

static int causal(int i, int j) { return j <= i + kSeqKv - kSeqQ; }
static int causal_top_left(int i, int j) { return j <= i; }
static int window(int i, int j) {
  const int position = i + kSeqKv - kSeqQ;
  return position - 3 <= j && j <= position + 2;
}

static void run_planned(struct problem* p, const tessera_plan_options* options) {
  tessera_plan* plan = NULL;
  CHECK_OK(tessera_plan_create(&p->attention, &p->inputs, options, &plan));

  const char* forward = NULL;
  const char* backward = NULL;
  CHECK_OK(tessera_plan_implementation(plan, &forward, &backward));
  CHECK(strcmp(forward, options->implementation) == 0);
  CHECK(strcmp(backward, options->implementation) == 0);
  CHECK_OK(tessera_plan_implementation(plan, NULL, NULL));
  const char* text = NULL;
  CHECK_OK(tessera_plan_explain(plan, &text));
  CHECK(strstr(text, forward) != NULL && strchr(text, '\n') != NULL);

  size_t forward_bytes = 0;
  size_t backward_bytes = 0;
  CHECK_OK(tessera_plan_workspace_bytes(plan, &forward_bytes, &backward_bytes));
  const size_t bytes = (forward_bytes > backward_bytes ? forward_bytes : backward_bytes) + 64;
  void* workspace = aligned_alloc(64, (bytes + 63) / 64 * 64);
  CHECK(workspace != NULL);
  tessera_run run = {
      .struct_size = sizeof run, .workspace = workspace, .workspace_bytes = forward_bytes};
  CHECK_OK(tessera_plan_forward(plan, &p->inputs, &p->outputs, &run));
  run.workspace_bytes = backward_bytes;
  CHECK_OK(tessera_plan_backward(plan, &p->inputs, &p->outputs, &p->d_outputs, &p->d_inputs, &run));
  if (forward_bytes > 0) {
    run.workspace_bytes = forward_bytes - 1;
    CHECK_FAILS(tessera_plan_forward(plan, &p->inputs, &p->outputs, &run), TESSERA_INVALID_ARGUMENT,
                "workspace");
    CHECK_FAILS(tessera_plan_forward(plan, &p->inputs, &p->outputs, NULL), TESSERA_INVALID_ARGUMENT,
                "workspace");
  }
  free(workspace);
  tessera_plan_destroy(plan);
}

/* Rows that quantise, or that multiply bf16 alone, take none of these problems. */
static int takes_f32(const char* name) {
  static struct problem p;
  const tessera_plan_options options = {.struct_size = sizeof options, .implementation = name};
  problem_init(&p);
  tessera_plan* plan = NULL;
  const tessera_status status = tessera_plan_create(&p.attention, &p.inputs, &options, &plan);
  CHECK(status == TESSERA_OK || status == TESSERA_UNSUPPORTED);
  tessera_plan_destroy(plan);
  return status == TESSERA_OK;
}

static void on_row(const char* name) {
  static struct problem p;
  tessera_plan_options options = {.struct_size = sizeof options,
                                  .passes = TESSERA_FORWARD | TESSERA_BACKWARD,
                                  .implementation = name};
  problem_init(&p);
  run_planned(&p, &options);
  problem_check(&p, NULL, 1);

  problem_init(&p);
  p.attention.causal = 1;
  run_planned(&p, &options);
  problem_check(&p, causal, 1);

  problem_init(&p);
  p.attention.causal = 1;
  p.attention.alignment = TESSERA_TOP_LEFT;
  run_planned(&p, &options);
  problem_check(&p, causal_top_left, 1);

  problem_init(&p);
  p.attention.has_scale = 1;
  p.attention.scale = 0.125;
  p.attention.has_window = 1;
  p.attention.window_left = 3;
  p.attention.window_right = 2;
  run_planned(&p, &options);
  problem_check(&p, window, 1);
}

static void one_call(void) {
  static struct problem p;
  problem_init(&p);
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  problem_check(&p, NULL, 0);
  CHECK_OK(tessera_attention_backward(&p.attention, &p.inputs, &p.outputs, &p.d_outputs,
                                      &p.d_inputs, NULL));
  problem_check(&p, NULL, 1);

  problem_init(&p);
  const tessera_plan_options options = {
      .struct_size = sizeof options, .threads = 1, .implementation = "reference"};
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, &options));
  problem_check(&p, NULL, 0);
}

/* Every other input through the ABI once: each must change what it should, or nothing. */
static void all_inputs(void) {
  static struct problem p;
  static struct problem plain;
  problem_init(&plain);
  CHECK_OK(tessera_attention_forward(&plain.attention, &plain.inputs, &plain.outputs, NULL));

  static float bias[kScores], d_bias[kScores], sink[kHeadsQ], d_sink[kHeadsQ], slopes[kHeadsQ];
  static unsigned char mask[kScores];
  static int32_t q_lens[kBatch], kv_lens[kBatch];
  memset(mask, 1, sizeof mask);
  for (int h = 0; h < kHeadsQ; ++h) sink[h] = -INFINITY;
  for (int b = 0; b < kBatch; ++b) {
    q_lens[b] = kSeqQ;
    kv_lens[b] = kSeqKv;
  }
  const int64_t scores[] = {1, 1, kSeqQ, kSeqKv};
  const int64_t heads[] = {kHeadsQ};
  const int64_t batch[] = {kBatch};
  const tessera_tensor tbias = tessera_contiguous(bias, TESSERA_F32, 4, scores);
  const tessera_tensor td_bias = tessera_contiguous(d_bias, TESSERA_F32, 4, scores);
  const tessera_tensor tmask = tessera_contiguous(mask, TESSERA_BOOL, 4, scores);
  const tessera_tensor tslopes = tessera_contiguous(slopes, TESSERA_F32, 1, heads);
  const tessera_tensor tsink = tessera_contiguous(sink, TESSERA_F32, 1, heads);
  const tessera_tensor td_sink = tessera_contiguous(d_sink, TESSERA_F32, 1, heads);
  const tessera_tensor tq_lens = tessera_contiguous(q_lens, TESSERA_I32, 1, batch);
  const tessera_tensor tkv_lens = tessera_contiguous(kv_lens, TESSERA_I32, 1, batch);
  problem_init(&p);
  p.inputs.bias = &tbias;
  p.inputs.mask = &tmask;
  p.inputs.alibi_slopes = &tslopes;
  p.inputs.sink = &tsink;
  p.inputs.q_lens = &tq_lens;
  p.inputs.kv_lens = &tkv_lens;
  p.d_inputs.d_bias = &td_bias;
  p.d_inputs.d_sink = &td_sink;
  static float d_lse[kLse];
  const int64_t rows[] = {kBatch, kHeadsQ, kSeqQ};
  const tessera_tensor td_lse = tessera_contiguous(d_lse, TESSERA_F32, 3, rows);
  p.d_outputs.d_lse = &td_lse;
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  problem_check(&p, NULL, 0);
  d_bias[0] = NAN;
  d_sink[0] = NAN;
  CHECK_OK(tessera_attention_backward(&p.attention, &p.inputs, &p.outputs, &p.d_outputs,
                                      &p.d_inputs, NULL));
  problem_check(&p, NULL, 1);
  CHECK(d_bias[0] == d_bias[0]);
  CHECK(d_sink[0] == 0); /* exp(-inf) of the probability goes to the sink */

  /* Dropout replays from (seed, offset) and moves with it. */
  static float first[kO];
  p.attention.dropout_p = 0.5;
  p.inputs.seed = 7;
  p.inputs.offset = 1;
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  memcpy(first, p.o, sizeof first);
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  CHECK(memcmp(first, p.o, sizeof first) == 0);
  p.inputs.offset = 2;
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  CHECK(memcmp(first, p.o, sizeof first) != 0);

  /* Softcap, deterministic and packed sequences arrive as well. */
  problem_init(&p);
  p.attention.softcap = 0.5;
  p.attention.deterministic = 1;
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  CHECK(memcmp(plain.o, p.o, sizeof p.o) != 0);
}

/* The first kSeqQ tokens of one head, packed as two sequences: each answers as if alone. */
static void packed(void) {
  static struct problem p;
  problem_init(&p);
  const int32_t cu_seqlens_q[] = {0, 8, kSeqQ};
  const int32_t cu_seqlens_k[] = {0, 13, kSeqKv};
  const int64_t three[] = {3};
  const int64_t q_sizes[] = {kSeqQ, 1, kHeadDim};
  const int64_t k_sizes[] = {kSeqKv, 1, kHeadDim};
  const int64_t v_sizes[] = {kSeqKv, 1, kHeadDimV};
  const int64_t o_sizes[] = {kSeqQ, 1, kHeadDimV};
  const tessera_tensor tq = tessera_contiguous(p.q, TESSERA_F32, 3, q_sizes);
  const tessera_tensor tk = tessera_contiguous(p.k, TESSERA_F32, 3, k_sizes);
  const tessera_tensor tv = tessera_contiguous(p.v, TESSERA_F32, 3, v_sizes);
  const tessera_tensor to = tessera_contiguous(p.o, TESSERA_F32, 3, o_sizes);
  const tessera_tensor tcu_q = tessera_contiguous(cu_seqlens_q, TESSERA_I32, 1, three);
  const tessera_tensor tcu_k = tessera_contiguous(cu_seqlens_k, TESSERA_I32, 1, three);
  const tessera_inputs inputs = {.struct_size = sizeof inputs,
                                 .q = &tq,
                                 .k = &tk,
                                 .v = &tv,
                                 .cu_seqlens_q = &tcu_q,
                                 .cu_seqlens_k = &tcu_k};
  const tessera_outputs outputs = {.struct_size = sizeof outputs, .o = &to};
  CHECK_OK(tessera_attention_forward(&p.attention, &inputs, &outputs, NULL));

  static float second[kO];
  const int64_t q_alone[] = {1, 1, kSeqQ - 8, kHeadDim};
  const int64_t k_alone[] = {1, 1, kSeqKv - 13, kHeadDim};
  const int64_t v_alone[] = {1, 1, kSeqKv - 13, kHeadDimV};
  const int64_t o_alone[] = {1, 1, kSeqQ - 8, kHeadDimV};
  const tessera_tensor aq = tessera_contiguous(p.q + 8 * kHeadDim, TESSERA_F32, 4, q_alone);
  const tessera_tensor ak = tessera_contiguous(p.k + 13 * kHeadDim, TESSERA_F32, 4, k_alone);
  const tessera_tensor av = tessera_contiguous(p.v + 13 * kHeadDimV, TESSERA_F32, 4, v_alone);
  const tessera_tensor ao = tessera_contiguous(second, TESSERA_F32, 4, o_alone);
  const tessera_inputs alone = {.struct_size = sizeof alone, .q = &aq, .k = &ak, .v = &av};
  const tessera_outputs alone_out = {.struct_size = sizeof alone_out, .o = &ao};
  CHECK_OK(tessera_attention_forward(&p.attention, &alone, &alone_out, NULL));
  for (int i = 0; i < (kSeqQ - 8) * kHeadDimV; ++i) {
    CHECK(fabsf(second[i] - p.o[8 * kHeadDimV + i]) < 1e-5f);
  }
}

int main(void) {
  size_t count = 0;
  CHECK_OK(tessera_implementation_count(&count));
  CHECK(count >= 2);
  int tested = 0;
  for (size_t i = 0; i < count; ++i) {
    tessera_implementation row = {.struct_size = sizeof row};
    CHECK_OK(tessera_implementation_get(i, &row));
    CHECK(row.name[0] != '\0' && row.supports[0] != '\0');
    CHECK((row.unavailable[0] == '\0') == (row.available != 0));
    if (!row.available || row.device_type != TESSERA_CPU) continue;
    if (!takes_f32(row.name)) continue;
    on_row(row.name);
    ++tested;
  }
  CHECK(tested >= 2);
  one_call();
  all_inputs();
  packed();
  printf("%d rows\n", tested);
  return 0;
}
