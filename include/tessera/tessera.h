/* Tessera's C interface: what tessera/attention.hpp offers C++, behind a stable ABI. Valid C11 and
 * C++; shapes, dtypes, semantics and the order of operations are described there.
 *
 * Structs. The first member of every struct is `struct_size`: set it to sizeof the struct and zero
 * the rest, which always means "default" or "absent":
 *
 *     tessera_inputs inputs = {.struct_size = sizeof inputs, .q = &q, .k = &k, .v = &v};
 *
 * Later versions add members at the end only, so a program keeps working with a newer library: what
 * its smaller struct_size leaves out is the default. With an older library it works as long as the
 * members that library does not know are zero; otherwise the call gives TESSERA_UNSUPPORTED. A
 * struct_size of 0 is TESSERA_INVALID_ARGUMENT. Enumerations are stored as int32_t, booleans are
 * int32_t with 0 for false.
 *
 * Errors. Every function that can fail returns a tessera_status and leaves one line on what was
 * wrong with tessera_last_error. A call that fails has written nothing through its pointers. No C++
 * exception crosses this interface.
 *
 * Ownership. Tensors are views of the caller's memory. A handle (tessera_plan, tessera_block_mask,
 * tessera_executor) is released by its destroy function, which accepts NULL; strings that the
 * library hands out belong to it and say how long they live.
 *
 * Threads. Every function may be called from any thread. Handles are immutable: many threads may
 * use one at the same time; it must outlive every call that uses it.
 */
#ifndef TESSERA_TESSERA_H_
#define TESSERA_TESSERA_H_

#include <stddef.h>
#include <stdint.h>

#include "tessera/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Outcome of a call. */
typedef enum tessera_status {
  TESSERA_OK = 0,
  TESSERA_INVALID_ARGUMENT = 1, /**< An argument is wrong; the message names it. */
  TESSERA_UNSUPPORTED = 2,      /**< Legal, but nothing at hand can do it. */
  TESSERA_OUT_OF_MEMORY = 3,    /**< An allocation failed. */
  TESSERA_DEVICE_ERROR = 4,     /**< A device or driver call failed. */
  TESSERA_INTERNAL = 5          /**< A bug in Tessera, or an exception out of a callback. */
} tessera_status;

/** Element types. f16 is IEEE binary16, bf16 the upper half of binary32, bool one byte, 0 or 1. */
typedef enum tessera_dtype {
  TESSERA_F32 = 0,
  TESSERA_F16 = 1,
  TESSERA_BF16 = 2,
  TESSERA_F64 = 3,
  TESSERA_I32 = 4,
  TESSERA_BOOL = 5
} tessera_dtype;

/** Where a tensor lives. */
typedef enum tessera_device_type { TESSERA_CPU = 0, TESSERA_CUDA = 1 } tessera_device_type;

/** Where query i stands on the key axis, for causal masks, windows and ALiBi: at i + a. */
typedef enum tessera_alignment {
  TESSERA_BOTTOM_RIGHT = 0, /**< a = Skv - Sq: the last query stands at the last key. */
  TESSERA_TOP_LEFT = 1      /**< a = 0: the first query stands at the first key. */
} tessera_alignment;

/** Precision of the forward pass's two matrix products (SageAttention2); the backward pass is
 * always exact. */
typedef enum tessera_precision {
  TESSERA_EXACT = 0,   /**< Products in the input dtype, f32 sums. */
  TESSERA_SAGE8 = 1,   /**< Q and K in INT8, P and V in FP8 E4M3 or 16 bits. */
  TESSERA_SAGE4 = 2,   /**< Q and K in INT4, P and V in FP8 E4M3 or 16 bits. */
  TESSERA_ADAPTIVE = 3 /**< What a tessera_adaptive_plan names for the (layer, step). */
} tessera_precision;

/** Which elements of Q and of K share a scale. */
typedef enum tessera_scale_granularity {
  TESSERA_SCALES_AUTOMATIC = 0,  /**< Per thread. */
  TESSERA_SCALES_PER_TENSOR = 1, /**< A sequence of one head. */
  TESSERA_SCALES_PER_BLOCK = 2,  /**< 128 queries; 64 keys. */
  TESSERA_SCALES_PER_WARP = 3,   /**< 32 queries; 64 keys. */
  TESSERA_SCALES_PER_THREAD = 4, /**< Queries i, i + 8, i + 16, i + 24 of 32; keys 2j, 2j + 1 modulo
                                    8 of 64. */
  TESSERA_SCALES_PER_TOKEN = 5   /**< One query; one key. */
} tessera_scale_granularity;

/** Which mean of Q's channels is subtracted before Q is quantised. */
typedef enum tessera_smooth_q {
  TESSERA_SMOOTH_Q_AUTOMATIC = 0, /**< None for sage8, per tensor for sage4. */
  TESSERA_SMOOTH_Q_NONE = 1,
  TESSERA_SMOOTH_Q_PER_TENSOR = 2, /**< Over the sequence's queries. */
  TESSERA_SMOOTH_Q_PER_BLOCK = 3   /**< Over each block of 128 queries. */
} tessera_smooth_q;

/** Whether a mean is subtracted. */
typedef enum tessera_smoothing {
  TESSERA_SMOOTHING_AUTOMATIC = 0, /**< On for K, off for V. */
  TESSERA_SMOOTHING_OFF = 1,
  TESSERA_SMOOTHING_ON = 2
} tessera_smoothing;

/** What P and V are multiplied in. */
typedef enum tessera_pv_format {
  TESSERA_PV_AUTOMATIC = 0, /**< FP8. */
  TESSERA_PV_FP8 = 1,       /**< E4M3. */
  TESSERA_PV_HALF = 2       /**< f16 for f16 inputs, otherwise bf16. */
} tessera_pv_format;

/** Passes of a plan, as bits. */
typedef enum tessera_pass { TESSERA_FORWARD = 1, TESSERA_BACKWARD = 2 } tessera_pass;

/** The message of the last call on this thread that failed, one line; "" if none has. Valid until
 *  the next call on this thread that fails; calls that succeed leave it as it is. */
TESSERA_API const char* tessera_last_error(void);

/** The library's version, "major.minor.patch"; lives as long as the library. */
TESSERA_API const char* tessera_version(void);

/** Gives a tessera_dtype's name, "f32", "f16", "bf16", "f64", "i32" or "bool"; it lives as long as
 *  the library. */
TESSERA_API tessera_status tessera_dtype_name(int32_t dtype, const char** name);

/** Gives the bytes of one element of a tessera_dtype. */
TESSERA_API tessera_status tessera_dtype_size(int32_t dtype, size_t* bytes);

/** Sizes that a tessera_tensor has room for. */
#define TESSERA_MAX_RANK 4

/** A view of caller-owned memory. An absent tensor is a NULL pointer to one. */
typedef struct tessera_tensor {
  size_t struct_size;
  void* data;                       /**< Not written if the tensor is an input. */
  int32_t dtype;                    /**< A tessera_dtype. */
  int32_t rank;                     /**< 1 to TESSERA_MAX_RANK. */
  int64_t size[TESSERA_MAX_RANK];   /**< The first `rank` count. */
  int64_t stride[TESSERA_MAX_RANK]; /**< In elements; the last dimension's is 1. Inputs may have
                                         stride 0, outputs must keep their elements apart. */
  int32_t device_type;              /**< A tessera_device_type. */
  int32_t device_index;             /**< Counts devices of one type; 0 on the CPU. */
} tessera_tensor;

/** A row-major view of CPU memory: the last dimension varies fastest. `sizes` has `rank` entries;
 *  a rank that is out of range is reported by the call that the tensor is given to. */
static inline tessera_tensor tessera_contiguous(const void* data, tessera_dtype dtype, int rank,
                                                const int64_t* sizes) {
  tessera_tensor tensor;
  uint64_t stride = 1; /* unsigned: huge sizes wrap here and are rejected by the library */
  int d;
  tensor.struct_size = sizeof(tessera_tensor);
  tensor.data = (void*)data;
  tensor.dtype = (int32_t)dtype;
  tensor.rank = rank;
  for (d = TESSERA_MAX_RANK - 1; d >= 0; --d) {
    const int used = d < rank && rank <= TESSERA_MAX_RANK;
    tensor.size[d] = used ? sizes[d] : 0;
    tensor.stride[d] = used ? (int64_t)stride : 0;
    if (used) stride *= (uint64_t)sizes[d];
  }
  tensor.device_type = TESSERA_CPU;
  tensor.device_index = 0;
  return tensor;
}

/** Where the CPU backend gets its threads. */
typedef struct tessera_executor tessera_executor;

/** One task of tessera_executor_callbacks::parallel. Does not throw. */
typedef void (*tessera_task)(void* task_context, int index);

/** A caller's own threads, to put Tessera's CPU work on another runtime. All three functions get
 *  `context` and may be called from many threads at once. */
typedef struct tessera_executor_callbacks {
  size_t struct_size;
  void* context; /**< The caller's; may be NULL. */
  /** The number of tasks that can usefully run at the same time, at least 1. Required. */
  int (*concurrency)(void* context);
  /** Calls task(task_context, i) exactly once for each i in [0, count), in any order, at the same
   *  time or one after another, and returns when all calls have returned. Required. */
  void (*parallel)(void* context, int count, tessera_task task, void* task_context);
  /** Called once by tessera_executor_destroy; may be NULL. */
  void (*destroy)(void* context);
} tessera_executor_callbacks;

/** Makes an executor of the caller's callbacks, which are copied. If the call fails, `destroy` has
 *  not been called. */
TESSERA_API tessera_status tessera_executor_create(const tessera_executor_callbacks* callbacks,
                                                   tessera_executor** executor);

/** Makes a pool of `threads` threads (the thread that runs a plan is one of them); 0 means one per
 *  CPU this process may use. A run that finds the pool busy does its work on its own thread. */
TESSERA_API tessera_status tessera_executor_create_thread_pool(int threads,
                                                               tessera_executor** executor);

/** Gives the executor that is used where none is named: one thread per CPU this process may use, or
 *  TESSERA_THREADS. It lives until the process ends; destroying it does nothing. */
TESSERA_API tessera_status tessera_executor_default(tessera_executor** executor);

/** Gives the number of tasks that the executor runs at the same time. */
TESSERA_API tessera_status tessera_executor_concurrency(const tessera_executor* executor,
                                                        int* concurrency);

/** Runs task(task_context, i) for each i in [0, count) on the executor and returns when all have
 *  returned. */
TESSERA_API tessera_status tessera_executor_parallel(tessera_executor* executor, int count,
                                                     tessera_task task, void* task_context);

/** Ends an executor and its threads. No run may be using it. NULL is ignored. */
TESSERA_API void tessera_executor_destroy(tessera_executor* executor);

/** An owning block mask on the host: which blocks of the score matrix exist at all. */
typedef struct tessera_block_mask tessera_block_mask;

/** What every builder of block masks needs to know. */
typedef struct tessera_block_shape {
  size_t struct_size;
  int64_t seq_q;    /**< Query rows. */
  int64_t seq_kv;   /**< Keys. */
  int64_t block_q;  /**< A multiple of 16; 0 means 128. */
  int64_t block_kv; /**< A multiple of 16; 0 means 128. */
} tessera_block_shape;

/** A block mask in compressed-sparse-row form, as kernels read it; non-owning.
 *
 *  Row r = (b * heads + h) * q_blocks + query_block has entries [row_offsets[r], row_offsets[r+1]).
 *  Entry e is key block columns[e], ascending within a row. If bits_index[e] is -1 the block is
 *  full; otherwise element (i, j) of the block exists iff bit j % 32 of
 *  bits[(bits_index[e] * block_q + i) * ((block_kv + 31) / 32) + j / 32] is set. The transpose
 *  lists, for column c = (b * heads + h) * kv_blocks + key_block, the query blocks
 *  transposed_rows[t] that visit it, ascending, and the entry transposed_entries[t] that does. */
typedef struct tessera_block_mask_view {
  size_t struct_size;
  int64_t batch;  /**< 1 (shared by all sequences) or B. */
  int64_t heads;  /**< 1 (shared by all heads) or Hq. */
  int64_t seq_q;  /**< Query rows covered; at least the longest sequence's. */
  int64_t seq_kv; /**< Keys covered; at least the longest sequence's. */
  int64_t block_q;
  int64_t block_kv;
  int64_t q_blocks;                  /**< ceil(seq_q / block_q). */
  int64_t kv_blocks;                 /**< ceil(seq_kv / block_kv). */
  const int64_t* row_offsets;        /**< [batch * heads * q_blocks + 1] */
  const int32_t* columns;            /**< [entries] */
  const int32_t* bits_index;         /**< [entries] */
  const int64_t* transposed_offsets; /**< [batch * heads * kv_blocks + 1] */
  const int32_t* transposed_rows;    /**< [entries] */
  const int64_t* transposed_entries; /**< [entries] */
  const uint32_t* bits;              /**< [partial_blocks * block_q * ((block_kv + 31) / 32)] */
  int64_t entries;
  int64_t partial_blocks;
  int32_t device_type; /**< A tessera_device_type: where the arrays live. */
  int32_t device_index;
} tessera_block_mask_view;

/** From a boolean matrix of blocks, row-major [batch, heads, q_blocks, kv_blocks]; non-zero =
 * visit. All listed blocks are full. `count` is the number of bytes in `blocks`. */
TESSERA_API tessera_status tessera_block_mask_from_blocks(const tessera_block_shape* shape,
                                                          int64_t batch, int64_t heads,
                                                          const uint8_t* blocks, size_t count,
                                                          tessera_block_mask** mask);

/** From a boolean element mask, row-major [batch, heads, seq_q, seq_kv]; non-zero = attend. Blocks
 *  that are all true become full, mixed ones partial, all-false ones are not listed. `count` is the
 *  number of bytes in `elements`. */
TESSERA_API tessera_status tessera_block_mask_from_elements(const tessera_block_shape* shape,
                                                            int64_t batch, int64_t heads,
                                                            const uint8_t* elements, size_t count,
                                                            tessera_block_mask** mask);

/** Whether query i may attend to key j: non-zero for yes. */
typedef int (*tessera_attend)(void* context, int64_t b, int64_t h, int64_t i, int64_t j);

/** From a predicate over elements, called on the caller's thread with `context`; blocks are
 *  classified as by tessera_block_mask_from_elements. */
TESSERA_API tessera_status tessera_block_mask_from_predicate(const tessera_block_shape* shape,
                                                             int64_t batch, int64_t heads,
                                                             tessera_attend attend, void* context,
                                                             tessera_block_mask** mask);

/** From the CSR arrays themselves (see tessera_block_mask_view), which are validated and copied.
 *  Without bits_index (NULL, count 0) all blocks are full. */
TESSERA_API tessera_status tessera_block_mask_from_csr(
    const tessera_block_shape* shape, int64_t batch, int64_t heads, const int64_t* row_offsets,
    size_t row_offsets_count, const int32_t* columns, size_t columns_count,
    const int32_t* bits_index, size_t bits_index_count, const uint32_t* bits, size_t bits_count,
    tessera_block_mask** mask);

/** Causal: blocks below the diagonal are full, blocks that it crosses are partial. `alignment` is a
 *  tessera_alignment. */
TESSERA_API tessera_status tessera_block_mask_causal(const tessera_block_shape* shape,
                                                     int32_t alignment, tessera_block_mask** mask);

/** Fixed butterfly (Pixelated Butterfly, Chen et al. 2021): a query block visits the key blocks
 *  whose index equals its own or differs from it in one bit. */
TESSERA_API tessera_status tessera_block_mask_butterfly(const tessera_block_shape* shape,
                                                        tessera_block_mask** mask);

/** Local + global (Longformer, BigBird): a band of `local` blocks to either side of the diagonal,
 *  and the first `global` block rows and columns in full. */
TESSERA_API tessera_status tessera_block_mask_local_global(const tessera_block_shape* shape,
                                                           int64_t local, int64_t global,
                                                           tessera_block_mask** mask);

/** Strided (Sparse Transformer, Child et al. 2019): the last `local` blocks up to the diagonal and
 *  every `stride`-th key block counted back from it. */
TESSERA_API tessera_status tessera_block_mask_strided(const tessera_block_shape* shape,
                                                      int64_t local, int64_t stride,
                                                      tessera_block_mask** mask);

/** Random: each row of blocks visits round(density * kv_blocks), at least 1, key blocks drawn
 *  without replacement from `seed`; the same on every machine. density in (0, 1]. */
TESSERA_API tessera_status tessera_block_mask_random(const tessera_block_shape* shape,
                                                     int64_t batch, int64_t heads, double density,
                                                     uint64_t seed, tessera_block_mask** mask);

/** Fills in `view` (as far as its struct_size reaches), valid as long as `mask` is. */
TESSERA_API tessera_status tessera_block_mask_get_view(const tessera_block_mask* mask,
                                                       tessera_block_mask_view* view);

/** Checks every array of a view on the host; TESSERA_INVALID_ARGUMENT says what is wrong. */
TESSERA_API tessera_status tessera_block_mask_validate(const tessera_block_mask_view* view);

/** Releases a block mask. NULL is ignored. */
TESSERA_API void tessera_block_mask_destroy(tessera_block_mask* mask);

/** The pieces of sage8's and sage4's scheme; 0 is automatic. */
typedef struct tessera_quantization {
  size_t struct_size;
  int32_t granularity; /**< A tessera_scale_granularity. */
  int32_t smooth_q;    /**< A tessera_smooth_q. */
  int32_t smooth_k;    /**< A tessera_smoothing. */
  int32_t smooth_v;    /**< A tessera_smoothing. */
  int32_t pv;          /**< A tessera_pv_format. */
  int32_t reserved;    /**< 0. */
} tessera_quantization;

/** The precision of each (layer, step) of one model, made by `tessera calibrate`. */
typedef struct tessera_adaptive_plan tessera_adaptive_plan;

/** Reads a plan file. `model` may be NULL or "" (any); a plan for another model, of another format
 * or version, or with ill-formed contents is refused with the reason. */
TESSERA_API tessera_status tessera_adaptive_plan_load(const char* path, const char* model,
                                                      tessera_adaptive_plan** plan);

/** The same from the JSON text itself. */
TESSERA_API tessera_status tessera_adaptive_plan_parse(const char* json, const char* model,
                                                       tessera_adaptive_plan** plan);

/** Gives the precision, a tessera_precision, of a layer and step. */
TESSERA_API tessera_status tessera_adaptive_plan_choose(const tessera_adaptive_plan* plan,
                                                        int64_t layer, int64_t step,
                                                        int32_t* precision);

/** Releases a plan. Plans made from it for attention live on. NULL is ignored. */
TESSERA_API void tessera_adaptive_plan_destroy(tessera_adaptive_plan* plan);

/** What to compute, without tensors. */
typedef struct tessera_attention {
  size_t struct_size;
  int32_t causal;        /**< Boolean: key j is visible to query i if j <= i + a. */
  int32_t alignment;     /**< A tessera_alignment. */
  int32_t has_scale;     /**< Boolean: use `scale`; otherwise it is 1/sqrt(D). */
  int32_t has_window;    /**< Boolean: use window_left and window_right. */
  double scale;          /**< Finite. */
  int64_t window_left;   /**< Key j is visible to query i if i + a - left <= j <= i + a + right; */
  int64_t window_right;  /**< -1 leaves a side unbounded. */
  double softcap;        /**< > 0: scores become softcap * tanh(s / softcap). 0: off. */
  double dropout_p;      /**< In [0, 1): probability of dropping an element of the softmax. */
  int32_t precision;     /**< A tessera_precision. */
  int32_t deterministic; /**< Boolean: the backward pass is bit-identical from run to run. */
  const tessera_quantization* quantization;   /**< NULL: all automatic. */
  const tessera_adaptive_plan* adaptive_plan; /**< With TESSERA_ADAPTIVE only, and then required. */
  int64_t layer;                              /**< What TESSERA_ADAPTIVE looks up in its plan. */
  int64_t step;
} tessera_attention;

/** What the computation reads. q, k and v are required and share a dtype; NULL elsewhere means "not
 *  used". All tensors live on one device. */
typedef struct tessera_inputs {
  size_t struct_size;
  const tessera_tensor* q;            /**< [B, Hq, Sq, D], or [Tq, Hq, D] packed. */
  const tessera_tensor* k;            /**< [B, Hkv, Skv, D], or [Tk, Hkv, D] packed. */
  const tessera_tensor* v;            /**< [B, Hkv, Skv, Dv], or [Tk, Hkv, Dv] packed. */
  const tessera_tensor* bias;         /**< [B|1, Hq|1, Sq|1, Skv], q's dtype or f32. */
  const tessera_tensor* mask;         /**< bool [B|1, Hq|1, Sq|1, Skv], true = attend. */
  const tessera_tensor* alibi_slopes; /**< f32 [Hq] or [B, Hq]. */
  const tessera_tensor* sink;         /**< f32 [Hq]: logits that join the denominator. */
  const tessera_tensor* q_lens;       /**< i32 [B]: query rows used in each sequence. */
  const tessera_tensor* kv_lens;      /**< i32 [B]: keys used in each sequence. */
  const tessera_tensor* cu_seqlens_q; /**< i32 [B + 1]: packed sequences; both or neither. */
  const tessera_tensor* cu_seqlens_k; /**< i32 [B + 1]. */
  const tessera_block_mask_view* block_mask;
  uint64_t seed;   /**< Dropout's random stream: the same seed and offset drop the same */
  uint64_t offset; /**< elements on every backend and in both passes. */
} tessera_inputs;

/** What the forward pass writes and the backward pass reads. */
typedef struct tessera_outputs {
  size_t struct_size;
  const tessera_tensor* o;   /**< [B, Hq, Sq, Dv] or [Tq, Hq, Dv], q's dtype. Required. */
  const tessera_tensor* lse; /**< f32 [B, Hq, Sq] or [Hq, Tq], natural log (f64 with f64); the
                                  backward pass needs it. */
} tessera_outputs;

/** The gradients that come in. */
typedef struct tessera_output_gradients {
  size_t struct_size;
  const tessera_tensor* d_o;   /**< As o. Required. */
  const tessera_tensor* d_lse; /**< As lse. */
} tessera_output_gradients;

/** The gradients that go out; any of them may be NULL. */
typedef struct tessera_input_gradients {
  size_t struct_size;
  const tessera_tensor* d_q;    /**< As q. */
  const tessera_tensor* d_k;    /**< As k. */
  const tessera_tensor* d_v;    /**< As v. */
  const tessera_tensor* d_bias; /**< As bias; summed over its broadcast dimensions. */
  const tessera_tensor* d_sink; /**< As sink. */
} tessera_input_gradients;

/** Choices about a plan. */
typedef struct tessera_plan_options {
  size_t struct_size;
  uint32_t passes;            /**< Bits of tessera_pass; 0 means TESSERA_FORWARD. */
  int32_t bias_gradient;      /**< Boolean: the backward pass will write d_bias. */
  int32_t sink_gradient;      /**< Boolean: the backward pass will write d_sink. */
  int32_t threads;            /**< CPU tasks run side by side; 0 = the executor's concurrency. */
  const char* implementation; /**< Force this row of the table; NULL or "" = the best one. */
  const tessera_executor* executor; /**< NULL = the default executor. */
} tessera_plan_options;

/** How to run. */
typedef struct tessera_run {
  size_t struct_size;
  void* workspace; /**< On the plan's device, aligned to 64 bytes; NULL if the plan needs none. */
  size_t workspace_bytes;
  void* stream;               /**< CUDA: a cudaStream_t; calls are asynchronous. */
  tessera_executor* executor; /**< CPU: the threads; NULL = the default executor. */
} tessera_run;

/** A chosen implementation for one problem: made once, run many times, on many threads at once if
 *  each run has its own workspace. Running allocates nothing. */
typedef struct tessera_plan tessera_plan;

/** Validates the description against the tensors' shapes, dtypes and strides and picks the first
 *  implementation that accepts it. Data pointers are not read and may be NULL here. `options` may
 *  be NULL. Everything passed in may go once the call has returned. */
TESSERA_API tessera_status tessera_plan_create(const tessera_attention* attention,
                                               const tessera_inputs* inputs,
                                               const tessera_plan_options* options,
                                               tessera_plan** plan);

/** Gives the bytes of workspace of each pass; 0 for a pass that was not planned. Either pointer may
 *  be NULL. */
TESSERA_API tessera_status tessera_plan_workspace_bytes(const tessera_plan* plan, size_t* forward,
                                                        size_t* backward);

/** Gives the name of each pass's implementation, "" for a pass that was not planned. Either pointer
 *  may be NULL. The strings live as long as the plan. */
TESSERA_API tessera_status tessera_plan_implementation(const tessera_plan* plan,
                                                       const char** forward, const char** backward);

/** Gives several lines: the problem, then for each planned pass every row of the table with its
 *  config or why it was passed over. The string lives as long as the plan. */
TESSERA_API tessera_status tessera_plan_explain(const tessera_plan* plan, const char** text);

/** Runs the planned forward pass. `run` may be NULL if the plan needs no workspace. */
TESSERA_API tessera_status tessera_plan_forward(const tessera_plan* plan,
                                                const tessera_inputs* inputs,
                                                const tessera_outputs* outputs,
                                                const tessera_run* run);

/** Runs the planned backward pass on the forward's inputs, its o and lse, and their gradients.
 *  `run` may be NULL if the plan needs no workspace. */
TESSERA_API tessera_status tessera_plan_backward(const tessera_plan* plan,
                                                 const tessera_inputs* inputs,
                                                 const tessera_outputs* outputs,
                                                 const tessera_output_gradients* d_outputs,
                                                 const tessera_input_gradients* d_inputs,
                                                 const tessera_run* run);

/** Releases a plan. No run may be using it. NULL is ignored. */
TESSERA_API void tessera_plan_destroy(tessera_plan* plan);

/** Plans, allocates the workspace and runs a forward pass. `options` may be NULL; its passes and
 *  gradients do not matter here. */
TESSERA_API tessera_status tessera_attention_forward(const tessera_attention* attention,
                                                     const tessera_inputs* inputs,
                                                     const tessera_outputs* outputs,
                                                     const tessera_plan_options* options);

/** Plans, allocates the workspace and runs a backward pass. `options` may be NULL; its passes and
 *  gradients do not matter here. */
TESSERA_API tessera_status tessera_attention_backward(const tessera_attention* attention,
                                                      const tessera_inputs* inputs,
                                                      const tessera_outputs* outputs,
                                                      const tessera_output_gradients* d_outputs,
                                                      const tessera_input_gradients* d_inputs,
                                                      const tessera_plan_options* options);

/** One row of the table of implementations. The strings live as long as the library. */
typedef struct tessera_implementation {
  size_t struct_size;
  const char* name;
  int32_t device_type;     /**< A tessera_device_type. */
  int32_t available;       /**< Boolean: usable on this machine. */
  const char* unavailable; /**< Why not, if not; else "". */
  const char* supports;    /**< One line: dtypes, passes, features. */
} tessera_implementation;

/** Gives the number of rows of the table. */
TESSERA_API tessera_status tessera_implementation_count(size_t* count);

/** Fills in `row` (as far as its struct_size reaches) with row `index` of the table, in the order
 *  in which rows are tried, device by device. */
TESSERA_API tessera_status tessera_implementation_get(size_t index, tessera_implementation* row);

/** Gives the number of lines that describe this machine's devices. */
TESSERA_API tessera_status tessera_device_count(size_t* count);

/** Gives line `index` on this machine's devices, e.g. "cpu: ..."; it lives as long as the
 *  library. */
TESSERA_API tessera_status tessera_device_describe(size_t index, const char** line);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TESSERA_TESSERA_H_ */
