"""Arrays of other libraries as tessera_tensor views: NumPy's directly, others through DLPack."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from . import _library
from ._library import Tensor

_NAMES = {
    "float32": _library.F32,
    "float16": _library.F16,
    "bfloat16": _library.BF16,
    "float64": _library.F64,
    "int32": _library.I32,
    "bool": _library.BOOL,
    "uint8": _library.BOOL,  # the bytes of a packed block mask; no kernel reads them as elements
}
_ALIGNMENT = 64
_LEGACY_STREAM = 1  # DLPack's name of CUDA's default stream, on which kernels run
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
_DL_KINDS = {(2, 32): "float32", (2, 16): "float16", (2, 64): "float64", (4, 16): "bfloat16"}
_DL_KINDS |= {(0, 32): "int32", (6, 8): "bool", (1, 8): "uint8"}


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule = ctypes.pythonapi.PyCapsule_GetPointer
_capsule.restype = ctypes.c_void_p
_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


class View:
    """A tessera_tensor over an array, which it keeps alive.

    Raises:
        ValueError: the array's dtype, device or rank is none of Tessera's.
        TypeError: it is neither a NumPy array nor offers DLPack.
    """

    def __init__(self, name: str, array: Any) -> None:
        self._name = name
        self.owner = array
        self._kept = array
        if isinstance(array, np.ndarray):
            kind = self._kind(array.dtype.name)
            strides = self._in_elements(array.strides, array.itemsize)
            self._fill(array.ctypes.data, kind, array.shape, strides, (_library.CPU, 0))
        elif hasattr(array, "data_ptr"):
            kind = self._kind(str(array.dtype).removeprefix("torch."))
            device = (_library.CUDA, array.device.index or 0) if array.is_cuda else (0, 0)
            self._fill(array.data_ptr(), kind, array.shape, array.stride(), device)
        elif hasattr(array, "__dlpack__"):
            self._from_dlpack(array)
        else:
            raise TypeError(
                f"{name}: {type(array).__name__}, expected a NumPy array or one with __dlpack__"
            )

    def _kind(self, dtype: str) -> int:
        if dtype not in _NAMES:
            raise ValueError(f"{self._name}: dtype {dtype}, expected one of {', '.join(_NAMES)}")
        return _NAMES[dtype]

    def _in_elements(self, strides: tuple[int, ...], size: int) -> list[int]:
        if any(stride % size for stride in strides):
            raise ValueError(f"{self._name}: strides {strides} bytes, expected multiples of {size}")
        return [stride // size for stride in strides]

    def _from_dlpack(self, array: Any) -> None:
        device_type, _ = array.__dlpack_device__()
        on_gpu = device_type in (_DL_CUDA, _DL_CUDA_MANAGED)
        # Unversioned capsules: their layout is the DLTensor alone, and every producer has them.
        self._kept = array.__dlpack__(stream=_LEGACY_STREAM) if on_gpu else array.__dlpack__()
        tensor = _DLTensor.from_address(_capsule(self._kept, b"dltensor"))
        if device_type not in (_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED):
            raise ValueError(f"{self._name}: DLPack device {device_type}, expected the CPU or CUDA")
        dtype = _DL_KINDS.get((tensor.code, tensor.bits))
        if dtype is None or tensor.lanes != 1:
            raise ValueError(
                f"{self._name}: DLPack dtype {tensor.code}:{tensor.bits}x{tensor.lanes}, expected "
                f"one of {', '.join(_NAMES)}"
            )
        shape = tensor.shape[: tensor.ndim]
        if tensor.strides:
            strides = tensor.strides[: tensor.ndim]
        else:
            strides = [int(np.prod(shape[d + 1 :], dtype=np.int64)) for d in range(tensor.ndim)]
        device = (_library.CUDA, tensor.device_id) if on_gpu else (_library.CPU, 0)
        self._fill((tensor.data or 0) + tensor.byte_offset, _NAMES[dtype], shape, strides, device)

    def _fill(self, address, kind, shape, strides, device) -> None:
        self.address = address
        self.device = device
        rank = len(shape)
        sizes = (ctypes.c_int64 * _library.MAX_RANK)(*shape[: _library.MAX_RANK])
        steps = (ctypes.c_int64 * _library.MAX_RANK)(*strides[: _library.MAX_RANK])
        self._tensor = Tensor(
            data=address or None,
            dtype=kind,
            rank=rank,
            size=sizes,
            stride=steps,
            device_type=device[0],
            device_index=device[1],
        )
        self.pointer = ctypes.pointer(self._tensor)


def swap_heads(array: Any) -> Any:
    """[B, S, H, D] as [B, H, S, D], and back, without a copy."""
    return array.transpose(1, 2) if hasattr(array, "data_ptr") else array.swapaxes(1, 2)


def _namespace(array: Any) -> Any:
    """The module that makes arrays of this one's kind."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules[type(array).__module__.partition(".")[0]]


def empty(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """An uninitialised array of `like`'s kind and device, in its dtype unless another is named."""
    xp = _namespace(like)
    dtype = like.dtype if dtype is None else getattr(xp, dtype)
    if "device" in dir(like) and xp is not np:
        with _on_device_of(like):
            return xp.empty(shape, dtype=dtype)
    return xp.empty(shape, dtype=dtype)


def _on_device_of(array: Any) -> Any:
    """A context in which the array's library allocates on the array's device."""
    device = array.device
    if hasattr(device, "__enter__"):  # CuPy
        return device
    import jax

    return jax.default_device(device)


class Workspace:
    """Aligned bytes on `like`'s device."""

    def __init__(self, like: Any, size: int) -> None:
        self.address = None
        if size:
            self._array = empty(like, (size + _ALIGNMENT,), "uint8")
            address = View("workspace", self._array).address
            self.address = -(-address // _ALIGNMENT) * _ALIGNMENT


def wait(device: tuple[int, int]) -> None:
    """Waits for CUDA's default stream, on which arrays of other libraries are worked on, so that
    their own streams see the results."""
    if device[0] == _library.CUDA:
        status = ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(_LEGACY_STREAM))
        if status != 0:
            raise RuntimeError(f"cuStreamSynchronize: error {status}")
