"""Tessera: exact, block-sparse and quantised attention on CPUs and NVIDIA GPUs.

PyTorch tensors go through operators with autograd (`torch.ops.tessera`), NumPy arrays and whatever
offers DLPack through the C interface. PyTorch is used if it is installed; nothing here needs it.
"""

from ._attention import attention, attention_backward, attention_varlen
from ._block_mask import BlockMask
from ._explain import explain
from ._library import devices, implementations, version

__version__ = version()
__all__ = [
    "BlockMask",
    "attention",
    "attention_backward",
    "attention_varlen",
    "devices",
    "explain",
    "implementations",
    "route_sdpa",
    "scaled_dot_product_attention",
    "version",
]


def __getattr__(name: str):
    """What needs PyTorch, when it is first asked for."""
    if name in ("route_sdpa", "scaled_dot_product_attention"):
        from . import _sdpa

        return getattr(_sdpa, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
