"""Tessera's C interface (tessera/tessera.h) for PyTorch tensors, by ctypes.

Just what the benchmark needs: attention with fixed shapes, dense or over a block mask, planned
once and run many times.
"""

import ctypes
import math

import torch

_MAX_RANK = 4
_CPU, _CUDA = 0, 1
_FORWARD, _BACKWARD = 1, 2
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _Struct(ctypes.Structure):
    """A struct of the C interface: zero but for struct_size and what is named."""

    def __init__(self, **members):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **members)


class _Tensor(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("size", ctypes.c_int64 * _MAX_RANK),
        ("stride", ctypes.c_int64 * _MAX_RANK),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
    ]


_TensorPointer = ctypes.POINTER(_Tensor)


class _Attention(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("causal", ctypes.c_int32),
        ("alignment", ctypes.c_int32),
        ("has_scale", ctypes.c_int32),
        ("has_window", ctypes.c_int32),
        ("scale", ctypes.c_double),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        ("softcap", ctypes.c_double),
        ("dropout_p", ctypes.c_double),
        ("precision", ctypes.c_int32),
        ("deterministic", ctypes.c_int32),
    ]


class _Inputs(_Struct):
    _fields_ = (
        [("struct_size", ctypes.c_size_t)]
        + [
            (name, _TensorPointer)
            for name in (
                "q",
                "k",
                "v",
                "bias",
                "mask",
                "alibi_slopes",
                "sink",
                "q_lens",
                "kv_lens",
                "cu_seqlens_q",
                "cu_seqlens_k",
            )
        ]
        + [
            ("block_mask", ctypes.c_void_p),
            ("seed", ctypes.c_uint64),
            ("offset", ctypes.c_uint64),
        ]
    )


class _Outputs(_Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("o", _TensorPointer), ("lse", _TensorPointer)]


class _OutputGradients(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("d_o", _TensorPointer),
        ("d_lse", _TensorPointer),
    ]


class _InputGradients(_Struct):
    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, _TensorPointer) for name in ("d_q", "d_k", "d_v", "d_bias", "d_sink")
    ]


class _PlanOptions(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("passes", ctypes.c_uint32),
        ("bias_gradient", ctypes.c_int32),
        ("sink_gradient", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("implementation", ctypes.c_char_p),
        ("executor", ctypes.c_void_p),
    ]


class _Run(_Struct):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("executor", ctypes.c_void_p),
    ]


_BLOCK_MASK_ARRAYS = {
    "row_offsets": torch.int64,
    "columns": torch.int32,
    "bits_index": torch.int32,
    "transposed_offsets": torch.int64,
    "transposed_rows": torch.int32,
    "transposed_entries": torch.int64,
    "bits": torch.uint32,
}


class _BlockShape(_Struct):
    _fields_ = [("struct_size", ctypes.c_size_t)] + [
        (name, ctypes.c_int64) for name in ("seq_q", "seq_kv", "block_q", "block_kv")
    ]


class _BlockMaskView(_Struct):
    _fields_ = (
        [("struct_size", ctypes.c_size_t)]
        + [
            (name, ctypes.c_int64)
            for name in (
                "batch",
                "heads",
                "seq_q",
                "seq_kv",
                "block_q",
                "block_kv",
                "q_blocks",
                "kv_blocks",
            )
        ]
        + [(name, ctypes.c_void_p) for name in _BLOCK_MASK_ARRAYS]
        + [
            ("entries", ctypes.c_int64),
            ("partial_blocks", ctypes.c_int64),
            ("device_type", ctypes.c_int32),
            ("device_index", ctypes.c_int32),
        ]
    )


def _tensor(t):
    """A view of a PyTorch tensor."""
    rank = t.dim()
    array = ctypes.c_int64 * _MAX_RANK
    return _Tensor(
        data=t.data_ptr(),
        dtype=_DTYPES[t.dtype],
        rank=rank,
        size=array(*t.shape),
        stride=array(*t.stride()),
        device_type=_CUDA if t.is_cuda else _CPU,
        device_index=t.device.index or 0,
    )


class Error(RuntimeError):
    """The library's message on a call that failed."""


class Library:
    """libtessera, loaded from a path."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.tessera_last_error.restype = ctypes.c_char_p
        self._library.tessera_version.restype = ctypes.c_char_p
        self._library.tessera_plan_destroy.restype = None
        self._library.tessera_block_mask_destroy.restype = None

    def version(self):
        return self._library.tessera_version().decode()

    def call(self, name, *arguments):
        if getattr(self._library, name)(*arguments) != 0:
            raise Error(self._library.tessera_last_error().decode())

    def destroy_plan(self, plan):
        self._library.tessera_plan_destroy(plan)

    def destroy_block_mask(self, mask):
        self._library.tessera_block_mask_destroy(mask)


class BlockMask:
    """The blocks that a boolean matrix [query blocks, key blocks] lists, on the current GPU."""

    def __init__(self, library, blocks, block, seq_q, seq_kv):
        bytes_ = blocks.to("cpu", torch.uint8).contiguous()
        shape = _BlockShape(seq_q=seq_q, seq_kv=seq_kv, block_q=block, block_kv=block)
        mask = ctypes.c_void_p()
        library.call(
            "tessera_block_mask_from_blocks",
            ctypes.byref(shape),
            ctypes.c_int64(1),
            ctypes.c_int64(1),
            ctypes.c_void_p(bytes_.data_ptr()),
            ctypes.c_size_t(bytes_.numel()),
            ctypes.byref(mask),
        )
        try:
            self.view = _BlockMaskView()
            library.call("tessera_block_mask_get_view", mask, ctypes.byref(self.view))
            self._arrays = self._copy_arrays()
        finally:
            library.destroy_block_mask(mask)

    def _copy_arrays(self):
        """The view's arrays as GPU tensors, to which it then points."""
        view = self.view
        counts = dict.fromkeys(_BLOCK_MASK_ARRAYS, view.entries)
        counts["row_offsets"] = view.batch * view.heads * view.q_blocks + 1
        counts["transposed_offsets"] = view.batch * view.heads * view.kv_blocks + 1
        counts["bits"] = view.partial_blocks * view.block_q * ((view.block_kv + 31) // 32)
        arrays = {}
        for name, dtype in _BLOCK_MASK_ARRAYS.items():
            arrays[name] = torch.empty(max(counts[name], 1), dtype=dtype)
            size = counts[name] * arrays[name].element_size()
            ctypes.memmove(arrays[name].data_ptr(), getattr(view, name) or 0, size)
            arrays[name] = arrays[name].cuda()
            setattr(view, name, arrays[name].data_ptr())
        view.device_type = _CUDA
        view.device_index = torch.cuda.current_device()
        return arrays


class Plan:
    """Attention over the given tensors, [B, H, S, D] in any strides; keeps them alive.

    Results are in `o`, `lse`, `d_q`, `d_k` and `d_v`.
    """

    def __init__(
        self,
        library,
        q,
        k,
        v,
        d_o=None,
        causal=False,
        block_mask=None,
        implementation="",
        threads=0,
    ):
        self._library = library
        self._plan = ctypes.c_void_p()
        self.o = torch.empty_like(q)
        self.lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        self._kept = [q, k, v, d_o, block_mask]
        views = [_tensor(t) for t in (q, k, v, self.o, self.lse)]
        self._inputs = _Inputs(**dict(zip("qkv", map(ctypes.pointer, views))))
        if block_mask is not None:
            self._inputs.block_mask = ctypes.addressof(block_mask.view)
        self._outputs = _Outputs(o=ctypes.pointer(views[3]), lse=ctypes.pointer(views[4]))
        passes = _FORWARD
        if d_o is not None:
            passes |= _BACKWARD
            self.d_q, self.d_k, self.d_v = (torch.empty_like(t) for t in (q, k, v))
            self._d_outputs = _OutputGradients(d_o=ctypes.pointer(_tensor(d_o)))
            self._d_inputs = _InputGradients(
                d_q=ctypes.pointer(_tensor(self.d_q)),
                d_k=ctypes.pointer(_tensor(self.d_k)),
                d_v=ctypes.pointer(_tensor(self.d_v)),
            )
        library.call(
            "tessera_plan_create",
            ctypes.byref(_Attention(causal=int(causal))),
            ctypes.byref(self._inputs),
            ctypes.byref(
                _PlanOptions(
                    passes=passes, implementation=implementation.encode(), threads=threads
                )
            ),
            ctypes.byref(self._plan),
        )
        sizes = [ctypes.c_size_t(), ctypes.c_size_t()]
        library.call("tessera_plan_workspace_bytes", self._plan, *map(ctypes.byref, sizes))
        self.workspace_bytes = [size.value for size in sizes]
        self._workspace = torch.empty(max(self.workspace_bytes), dtype=torch.uint8, device=q.device)

    def __del__(self):
        if self._plan:
            self._library.destroy_plan(self._plan)

    def implementations(self):
        """The rows that run forward and backward."""
        names = [ctypes.c_char_p(), ctypes.c_char_p()]
        self._library.call("tessera_plan_implementation", self._plan, *map(ctypes.byref, names))
        return [name.value.decode() for name in names]

    def _run(self):
        return _Run(
            workspace=self._workspace.data_ptr() or None,
            workspace_bytes=self._workspace.numel(),
            stream=torch.cuda.current_stream().cuda_stream if self.o.is_cuda else None,
        )

    def forward(self):
        """Runs the forward pass; on a GPU enqueues it on PyTorch's current stream."""
        self._library.call(
            "tessera_plan_forward",
            self._plan,
            ctypes.byref(self._inputs),
            ctypes.byref(self._outputs),
            ctypes.byref(self._run()),
        )

    def backward(self):
        """The same for the backward pass; forward must have run."""
        self._library.call(
            "tessera_plan_backward",
            self._plan,
            ctypes.byref(self._inputs),
            ctypes.byref(self._outputs),
            ctypes.byref(self._d_outputs),
            ctypes.byref(self._d_inputs),
            ctypes.byref(self._run()),
        )


def flops(batch, heads, seq_q, seq_kv, head_dim, causal, backward):
    """Operations as the FlashAttention papers count them."""
    forward = 4 * batch * heads * seq_q * seq_kv * head_dim
    return math.prod([forward, 0.5 if causal else 1, 2.5 if backward else 1])
