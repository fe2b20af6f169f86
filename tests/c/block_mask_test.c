/* Every builder of block masks through the ABI, and attention under one. */
#include "check.h"

enum { kBlock = 16 };

static const tessera_block_shape kShape = {.struct_size = sizeof(tessera_block_shape),
                                           .seq_q = kSeqQ,
                                           .seq_kv = kSeqKv,
                                           .block_q = kBlock,
                                           .block_kv = kBlock};

static int attend(void* context, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int* step = context;
  (void)b;
  (void)h;
  return (i + j) % *step != 0;
}

static int stepped(int i, int j) { return (i + j) % 3 != 0; }
static int first_blocks(int i, int j) { return i / kBlock == j / kBlock; }

/* Forward and backward of a problem under `mask`, against the same visibility in loops. */
static void run_under(const tessera_block_mask* mask, visible_fn visible) {
  static struct problem p;
  tessera_block_mask_view view = {.struct_size = sizeof view};
  CHECK_OK(tessera_block_mask_get_view(mask, &view));
  CHECK_OK(tessera_block_mask_validate(&view));
  CHECK(view.struct_size == sizeof view && view.seq_q == kSeqQ && view.block_kv == kBlock);
  problem_init(&p);
  p.inputs.block_mask = &view;
  CHECK_OK(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL));
  CHECK_OK(tessera_attention_backward(&p.attention, &p.inputs, &p.outputs, &p.d_outputs,
                                      &p.d_inputs, NULL));
  problem_check(&p, visible, 1);
}

static void attention_under_masks(void) {
  tessera_block_mask* mask = NULL;
  int step = 3;
  CHECK_OK(tessera_block_mask_from_predicate(&kShape, 1, 1, attend, &step, &mask));
  run_under(mask, stepped);
  tessera_block_mask_destroy(mask);

  static uint8_t elements[kBatch * kHeadsQ * kScores];
  for (int e = 0; e < kBatch * kHeadsQ * kScores; ++e) {
    elements[e] = (uint8_t)stepped(e / kSeqKv % kSeqQ, e % kSeqKv);
  }
  CHECK_OK(
      tessera_block_mask_from_elements(&kShape, kBatch, kHeadsQ, elements, sizeof elements, &mask));
  run_under(mask, stepped);
  tessera_block_mask_destroy(mask);

  const uint8_t blocks[] = {1, 0, 0, 1};
  CHECK_OK(tessera_block_mask_from_blocks(&kShape, 1, 1, blocks, sizeof blocks, &mask));
  run_under(mask, first_blocks);
  tessera_block_mask_destroy(mask);

  const int64_t row_offsets[] = {0, 1, 2};
  const int32_t columns[] = {0, 1};
  CHECK_OK(tessera_block_mask_from_csr(&kShape, 1, 1, row_offsets, 3, columns, 2, NULL, 0, NULL, 0,
                                       &mask));
  run_under(mask, first_blocks);
  tessera_block_mask_destroy(mask);
}

/* Lists the mask's blocks, q_blocks x kv_blocks characters, and releases it. */
static const char* drawn(tessera_block_mask* mask) {
  static char picture[65];
  tessera_block_mask_view view = {.struct_size = sizeof view};
  CHECK_OK(tessera_block_mask_get_view(mask, &view));
  CHECK(view.q_blocks * view.kv_blocks < (int64_t)sizeof picture);
  memset(picture, 0, sizeof picture);
  memset(picture, '.', (size_t)(view.q_blocks * view.kv_blocks));
  for (int64_t r = 0; r < view.q_blocks; ++r) {
    for (int64_t e = view.row_offsets[r]; e < view.row_offsets[r + 1]; ++e) {
      picture[r * view.kv_blocks + view.columns[e]] = view.bits_index[e] < 0 ? '#' : '+';
    }
  }
  tessera_block_mask_destroy(mask);
  return picture;
}

static void patterns(void) {
  const tessera_block_shape shape = {.struct_size = sizeof shape,
                                     .seq_q = 4 * kBlock,
                                     .seq_kv = 4 * kBlock,
                                     .block_q = kBlock,
                                     .block_kv = kBlock};
  tessera_block_mask* mask = NULL;
  CHECK_OK(tessera_block_mask_causal(&shape, TESSERA_BOTTOM_RIGHT, &mask));
  CHECK(strcmp(drawn(mask), "+...#+..##+.###+") == 0);
  CHECK_OK(tessera_block_mask_causal(&kShape, TESSERA_TOP_LEFT, &mask));
  CHECK(strcmp(drawn(mask), "+.#+") == 0);
  CHECK_OK(tessera_block_mask_butterfly(&shape, &mask));
  CHECK(strcmp(drawn(mask), "###.##.##.##.###") == 0);
  CHECK_OK(tessera_block_mask_local_global(&shape, 0, 1, &mask));
  CHECK(strcmp(drawn(mask), "######..#.#.#..#") == 0);
  CHECK_OK(tessera_block_mask_strided(&shape, 1, 2, &mask));
  CHECK(strcmp(drawn(mask), "#....#..#.#..#.#") == 0);
  CHECK_OK(tessera_block_mask_random(&shape, 1, 1, 0.5, 42, &mask));
  int listed = 0;
  for (const char* c = drawn(mask); *c != '\0'; ++c) listed += *c == '#';
  CHECK(listed == 8);

  /* Block sizes default to 128. */
  const tessera_block_shape large = {.struct_size = sizeof large, .seq_q = 300, .seq_kv = 200};
  tessera_block_mask_view view = {.struct_size = sizeof view};
  CHECK_OK(tessera_block_mask_butterfly(&large, &mask));
  CHECK_OK(tessera_block_mask_get_view(mask, &view));
  CHECK(view.block_q == 128 && view.block_kv == 128 && view.q_blocks == 3 && view.kv_blocks == 2);
  tessera_block_mask_destroy(mask);
}

static void errors(void) {
  tessera_block_mask* mask = NULL;
  const uint8_t blocks[] = {1, 0, 0, 1};
  tessera_block_shape bad = kShape;
  bad.block_q = 17;
  CHECK_FAILS(tessera_block_mask_butterfly(&bad, &mask), TESSERA_INVALID_ARGUMENT, "17");
  CHECK_FAILS(tessera_block_mask_butterfly(NULL, &mask), TESSERA_INVALID_ARGUMENT, "shape: null");
  CHECK_FAILS(tessera_block_mask_butterfly(&kShape, NULL), TESSERA_INVALID_ARGUMENT, "mask: null");
  CHECK_FAILS(tessera_block_mask_causal(&kShape, 2, &mask), TESSERA_INVALID_ARGUMENT,
              "alignment: 2");
  CHECK_FAILS(tessera_block_mask_from_blocks(&kShape, 1, 1, blocks, 3, &mask),
              TESSERA_INVALID_ARGUMENT, "blocks");
  CHECK_FAILS(tessera_block_mask_from_blocks(&kShape, 1, 1, NULL, 4, &mask),
              TESSERA_INVALID_ARGUMENT, "blocks: null");
  CHECK_FAILS(tessera_block_mask_from_elements(&kShape, 1, 1, NULL, 4, &mask),
              TESSERA_INVALID_ARGUMENT, "elements: null");
  CHECK_FAILS(tessera_block_mask_from_predicate(&kShape, 1, 1, NULL, NULL, &mask),
              TESSERA_INVALID_ARGUMENT, "attend: null");
  CHECK_FAILS(tessera_block_mask_from_csr(&kShape, 1, 1, NULL, 3, NULL, 0, NULL, 0, NULL, 0, &mask),
              TESSERA_INVALID_ARGUMENT, "row_offsets: null");
  CHECK_FAILS(tessera_block_mask_random(&kShape, 1, 1, 0.0, 1, &mask), TESSERA_INVALID_ARGUMENT,
              "density");
  CHECK_FAILS(tessera_block_mask_local_global(&kShape, -1, 0, &mask), TESSERA_INVALID_ARGUMENT,
              "local");
  CHECK_FAILS(tessera_block_mask_strided(&kShape, 1, 0, &mask), TESSERA_INVALID_ARGUMENT, "stride");
  CHECK(mask == NULL);

  tessera_block_mask_view view = {.struct_size = sizeof view};
  CHECK_FAILS(tessera_block_mask_get_view(NULL, &view), TESSERA_INVALID_ARGUMENT, "mask: null");
  CHECK_OK(tessera_block_mask_butterfly(&kShape, &mask));
  CHECK_FAILS(tessera_block_mask_get_view(mask, NULL), TESSERA_INVALID_ARGUMENT, "view: null");
  CHECK_FAILS(tessera_block_mask_validate(NULL), TESSERA_INVALID_ARGUMENT, "view: null");
  CHECK_OK(tessera_block_mask_get_view(mask, &view));
  view.device_type = 5;
  CHECK_FAILS(tessera_block_mask_validate(&view), TESSERA_INVALID_ARGUMENT, "view.device_type: 5");
  view.device_type = TESSERA_CPU;
  view.columns = NULL;
  CHECK_FAILS(tessera_block_mask_validate(&view), TESSERA_INVALID_ARGUMENT, "columns");

  /* Attention rejects a mask that is too small, and reads no arrays of a broken one. */
  static struct problem p;
  problem_init(&p);
  p.inputs.block_mask = &view;
  CHECK_FAILS(tessera_attention_forward(&p.attention, &p.inputs, &p.outputs, NULL),
              TESSERA_INVALID_ARGUMENT, "columns");
  tessera_block_mask_destroy(mask);
  tessera_block_mask_destroy(NULL);
}

int main(void) {
  attention_under_masks();
  patterns();
  errors();
  return 0;
}
