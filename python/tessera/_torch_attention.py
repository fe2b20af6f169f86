"""Attention on PyTorch tensors: from the arguments of `tessera.attention` to the operator's."""

from __future__ import annotations

import numpy as np
import torch

from . import _torch_ops
from ._arguments import Settings
from ._block_mask import BlockMask

# How the operators' messages about wrong arguments begin (csrc/tensors.cpp).
_INVALID_ARGUMENT = "invalid argument: "


def _new_seed(q: torch.Tensor) -> torch.Tensor:
    """A dropout seed from PyTorch's default generator, on the CPU, which torch.manual_seed sets and
    checkpointing restores."""
    if q.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "dropout_p: above 0 while a CUDA graph is captured, expected 0: every replay would "
            "drop the same elements"
        )
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device="cpu")


def _data_of(block_mask: BlockMask | None) -> torch.Tensor | None:
    """Its bytes as a tensor, which share a NumPy array's memory."""
    if block_mask is None:
        return None
    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"block_mask: {type(block_mask).__name__}, expected a tessera.BlockMask")
    data = block_mask.data
    return torch.from_numpy(data) if isinstance(data, np.ndarray) else data


def _require_tensors(arguments: tuple) -> None:
    """Says which argument is no tensor, once something has failed."""
    for position, (name, value) in enumerate(zip(_torch_ops.NAMES[:12], arguments)):
        absent = value is None and position >= 3
        if not absent and not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name}: {type(value).__name__}, expected a torch.Tensor as q is one"
            ) from None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    settings: Settings,
    *,
    alibi: torch.Tensor | None,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    block_mask: BlockMask | None,
    sinks: torch.Tensor | None,
    q_lens: torch.Tensor | None,
    kv_lens: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse of [B, H, S, D] tensors, or of [T, H, D] ones with cu_seqlens."""
    deterministic = settings.deterministic or torch.are_deterministic_algorithms_enabled()
    arguments = (
        q,
        k,
        v,
        bias,
        mask,
        alibi,
        sinks,
        q_lens,
        kv_lens,
        cu_seqlens_q,
        cu_seqlens_k,
        _data_of(block_mask),
        [] if block_mask is None else block_mask.sizes,
        _new_seed(q) if settings.dropout_p > 0 else None,
        settings.causal,
        settings.top_left,
        settings.window[0],
        settings.window[1],
        settings.scale,
        settings.softcap,
        settings.dropout_p,
        settings.precision,
        deterministic,
        settings.plan,
        settings.layer,
    )
    if torch.compiler.is_compiling():
        return _torch_ops.attention(*arguments)
    try:
        return _torch_ops.attend(arguments)
    except (RuntimeError, AttributeError) as error:
        _require_tensors(arguments)
        message = str(error)
        if message.startswith(_INVALID_ARGUMENT):
            raise ValueError(message.removeprefix(_INVALID_ARGUMENT)) from None
        raise
