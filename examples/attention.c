#include <stdio.h>
#include <tessera/tessera.h>

static float q[8 * 256 * 64], k[2 * 256 * 64], v[2 * 256 * 64], o[8 * 256 * 64];

int main(void) {
  const int64_t q_sizes[] = {1, 8, 256, 64}; /* batch, heads, sequence, head_dim */
  const int64_t k_sizes[] = {1, 2, 256, 64}; /* two key/value heads: GQA */
  const tessera_tensor tq = tessera_contiguous(q, TESSERA_F32, 4, q_sizes);
  const tessera_tensor tk = tessera_contiguous(k, TESSERA_F32, 4, k_sizes);
  const tessera_tensor tv = tessera_contiguous(v, TESSERA_F32, 4, k_sizes);
  const tessera_tensor to = tessera_contiguous(o, TESSERA_F32, 4, q_sizes);
  const tessera_attention attention = {.struct_size = sizeof attention, .causal = 1};
  const tessera_inputs inputs = {.struct_size = sizeof inputs, .q = &tq, .k = &tk, .v = &tv};
  const tessera_outputs outputs = {.struct_size = sizeof outputs, .o = &to};
  const tessera_status status = tessera_attention_forward(&attention, &inputs, &outputs, NULL);
  if (status != TESSERA_OK) fprintf(stderr, "%s\n", tessera_last_error());
  return status;
}
