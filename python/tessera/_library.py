"""libtessera through its C interface (tessera/tessera.h), by ctypes.

The structs mirror the header's. Each is zero but for `struct_size` and what its maker names, which
the header defines as "default" or "absent".
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MAX_RANK = 4
CPU, CUDA = 0, 1
FORWARD, BACKWARD = 1, 2
F32, F16, BF16, F64, I32, BOOL = range(6)
ALIGNMENTS = {"bottom_right": 0, "top_left": 1}
PRECISIONS = {"exact": 0, "sage8": 1, "sage4": 2, "adaptive": 3}

_INVALID_ARGUMENT, _UNSUPPORTED, _OUT_OF_MEMORY = 1, 2, 3


class Struct(ctypes.Structure):
    """A struct of the C interface."""

    def __init__(self, **members: object) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **members)


def _fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    """Fields from pairs of a type and names separated by spaces; `struct_size` comes first."""
    named = [(name, kind) for kind, names in groups for name in names.split()]
    return [("struct_size", ctypes.c_size_t), *named]


_i32, _i64, _u64, _f64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_double
_pointer = ctypes.c_void_p


class Tensor(Struct):
    """tessera_tensor: a view of memory."""

    _fields_ = _fields(
        (_pointer, "data"),
        (_i32, "dtype rank"),
        (_i64 * MAX_RANK, "size stride"),
        (_i32, "device_type device_index"),
    )


TensorPointer = ctypes.POINTER(Tensor)


class Attention(Struct):
    """tessera_attention: what to compute."""

    _fields_ = _fields(
        (_i32, "causal alignment has_scale has_window"),
        (_f64, "scale"),
        (_i64, "window_left window_right"),
        (_f64, "softcap dropout_p"),
        (_i32, "precision deterministic"),
        (_pointer, "quantization adaptive_plan"),
        (_i64, "layer step"),
    )


class BlockMaskView(Struct):
    """tessera_block_mask_view: a block mask's arrays."""

    _fields_ = _fields(
        (_i64, "batch heads seq_q seq_kv block_q block_kv q_blocks kv_blocks"),
        (_pointer, "row_offsets columns bits_index"),
        (_pointer, "transposed_offsets transposed_rows transposed_entries bits"),
        (_i64, "entries partial_blocks"),
        (_i32, "device_type device_index"),
    )


class Inputs(Struct):
    """tessera_inputs: what is read."""

    _fields_ = _fields(
        (TensorPointer, "q k v bias mask alibi_slopes sink q_lens kv_lens"),
        (TensorPointer, "cu_seqlens_q cu_seqlens_k"),
        (ctypes.POINTER(BlockMaskView), "block_mask"),
        (_u64, "seed offset"),
    )


class Outputs(Struct):
    """tessera_outputs: what the forward pass writes."""

    _fields_ = _fields((TensorPointer, "o lse"))


class OutputGradients(Struct):
    """tessera_output_gradients: the gradients that come in."""

    _fields_ = _fields((TensorPointer, "d_o d_lse"))


class InputGradients(Struct):
    """tessera_input_gradients: the gradients that go out."""

    _fields_ = _fields((TensorPointer, "d_q d_k d_v d_bias d_sink"))


class PlanOptions(Struct):
    """tessera_plan_options: choices about a plan."""

    _fields_ = _fields(
        (ctypes.c_uint32, "passes"),
        (_i32, "bias_gradient sink_gradient threads"),
        (ctypes.c_char_p, "implementation"),
        (_pointer, "executor"),
    )


class Run(Struct):
    """tessera_run: how to run."""

    _fields_ = _fields(
        (_pointer, "workspace"),
        (ctypes.c_size_t, "workspace_bytes"),
        (_pointer, "stream executor"),
    )


class BlockShape(Struct):
    """tessera_block_shape: what every builder of block masks needs to know."""

    _fields_ = _fields((_i64, "seq_q seq_kv block_q block_kv"))


class Implementation(Struct):
    """tessera_implementation: a row of the table."""

    _fields_ = _fields(
        (ctypes.c_char_p, "name"),
        (_i32, "device_type available"),
        (ctypes.c_char_p, "unavailable supports"),
    )


def path() -> str:
    """The file of libtessera: TESSERA_LIBRARY if set, else the package's own."""
    own = sorted(Path(__file__).parent.glob("libtessera.so*"))
    return os.environ.get("TESSERA_LIBRARY") or str(own[0] if own else "libtessera.so")


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(path())
    for name in ("tessera_last_error", "tessera_version"):
        getattr(library, name).restype = ctypes.c_char_p
    for kind in ("plan", "block_mask", "adaptive_plan"):
        getattr(library, f"tessera_{kind}_destroy").restype = None
    return library


_library = _load()


def version() -> str:
    """The version of libtessera, "major.minor.patch"."""
    return _library.tessera_version().decode()


def call(name: str, *arguments: object) -> None:
    """Calls a function of the C interface that gives a status.

    Raises:
        ValueError: an argument is wrong.
        NotImplementedError: legal, but nothing at hand can do it.
        MemoryError: an allocation failed.
        RuntimeError: anything else.
    """
    status = getattr(_library, name)(*arguments)
    if status == 0:
        return
    kinds = {
        _INVALID_ARGUMENT: ValueError,
        _UNSUPPORTED: NotImplementedError,
        _OUT_OF_MEMORY: MemoryError,
    }
    raise kinds.get(status, RuntimeError)(_library.tessera_last_error().decode())


class Handle:
    """Something that the C interface made, released with this object."""

    def __init__(self, kind: str, maker: str, *arguments: object) -> None:
        self._destroy = getattr(_library, f"tessera_{kind}_destroy")
        self.pointer = ctypes.c_void_p()
        call(maker, *arguments, ctypes.byref(self.pointer))

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._destroy(self.pointer)


def adaptive_plan(path: str) -> Handle:
    """A tessera_adaptive_plan from its file."""
    return Handle("adaptive_plan", "tessera_adaptive_plan_load", os.fsencode(path), None)


def implementations() -> list[dict[str, object]]:
    """The table of implementations, in the order in which rows are tried on each device.

    Returns:
        One dictionary a row: `name`, `device` ("cpu" or "cuda"), `available`, `unavailable` (why
        not, "" if it is) and `supports` (one line).
    """
    count = ctypes.c_size_t()
    call("tessera_implementation_count", ctypes.byref(count))
    rows = []
    for index in range(count.value):
        row = Implementation()
        call("tessera_implementation_get", ctypes.c_size_t(index), ctypes.byref(row))
        rows.append(
            dict(
                name=row.name.decode(),
                device="cuda" if row.device_type == CUDA else "cpu",
                available=bool(row.available),
                unavailable=row.unavailable.decode(),
                supports=row.supports.decode(),
            )
        )
    return rows


def devices() -> list[str]:
    """One line on each of this machine's devices."""
    count = ctypes.c_size_t()
    call("tessera_device_count", ctypes.byref(count))
    lines = []
    for index in range(count.value):
        line = ctypes.c_char_p()
        call("tessera_device_describe", ctypes.c_size_t(index), ctypes.byref(line))
        lines.append(line.value.decode())
    return lines
