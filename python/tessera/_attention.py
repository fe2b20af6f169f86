"""The package's main functions: attention on whatever kind of arrays it is given."""

from __future__ import annotations

import os
from typing import Any

from . import _array_attention
from ._arguments import Alignment, Layout, Precision, read_settings, swaps_heads
from ._arrays import swap_heads
from ._block_mask import BlockMask

try:
    import torch
except ImportError:
    torch = None
else:
    try:
        from . import _torch_attention
    except ImportError as error:  # too old a PyTorch, or a package built without its operators
        _torch_missing = str(error)
        _torch_attention = None

Array = Any
"""A PyTorch tensor, NumPy array or whatever offers DLPack (CuPy, JAX, …)."""


def _implementation(q: Array):
    if torch is None or not isinstance(q, torch.Tensor):
        return _array_attention.attention
    if _torch_attention is None:
        raise RuntimeError(_torch_missing)
    return _torch_attention.attention


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    alignment: Alignment = "bottom_right",
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    block_mask: BlockMask | None = None,
    sinks: Array | None = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    precision: Precision = "exact",
    plan: str | os.PathLike | None = None,
    layer: int | None = None,
    layout: Layout = "bhsd",
    deterministic: bool = False,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Attention, softmax(scale · q kᵀ + …) v, without the score matrix in memory.

    On one score: scale, softcap, + bias − ALiBi, masks, softmax (the sink joins the denominator),
    dropout, · v. A row with nothing to attend to gives zeros. Query i stands at key position i + a.
    Tensors may have any strides with a unit-stride last dimension, and are not copied.

    Args:
        q: [B, Hq, Sq, D]; float32, float16 or bfloat16, or float64 on the CPU.
        k: [B, Hkv, Skv, D], q's dtype; Hq is a multiple of Hkv.
        v: [B, Hkv, Skv, Dv], q's dtype.
        causal: key j is visible to query i if j ≤ i + a.
        alignment: "bottom_right", a = Skv − Sq, or "top_left", a = 0.
        window: (left, right): i + a − left ≤ j ≤ i + a + right is visible; −1 is unbounded.
        softcap: scores become softcap · tanh(score / softcap).
        alibi: ALiBi slopes, float32 [Hq] or [B, Hq]; no gradient.
        bias: added to the scores, [B|1, Hq|1, Sq|1, Skv], q's dtype or float32.
        mask: boolean, true = attend, [B|1, Hq|1, Sq|1, Skv].
        block_mask: which blocks of the score matrix exist, on q's device.
        sinks: float32 [Hq] logits; exp(sink) joins the softmax's denominator.
        q_lens: int32 [B]: query rows used in each sequence; the rest give zeros.
        kv_lens: int32 [B]: keys used in each sequence; the rest are not read.
        dropout_p: probability of dropping an element of the softmax; PyTorch tensors only, seeded
            from PyTorch's default generator.
        scale: 1/√D unless given.
        precision: "exact"; other names need rows of the table that take them. Gradients are those
            of exact attention.
        plan: a calibration's plan file, for precision "adaptive", of which step 0 is used.
        layer: the layer's number in that plan.
        layout: "bhsd" as above, or "bshd": q [B, Sq, Hq, D] and so on, o too.
        deterministic: the backward pass gives the same bits from run to run.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        o, [B, Hq, Sq, Dv] in q's dtype; with return_lse also lse, float32 [B, Hq, Sq].

    Raises:
        ValueError: an argument is wrong; the message names it and what was expected.
        RuntimeError: nothing at hand can do it (NotImplementedError without PyTorch), or a device
            failed.
    """
    settings = read_settings(
        causal=causal,
        alignment=alignment,
        window=window,
        softcap=softcap,
        dropout_p=dropout_p,
        scale=scale,
        precision=precision,
        plan=plan,
        layer=layer,
        deterministic=deterministic,
    )
    swapped = swaps_heads(layout)
    if swapped:
        q, k, v = (swap_heads(x) for x in (q, k, v))
    o, lse = _implementation(q)(
        q,
        k,
        v,
        settings,
        alibi=alibi,
        bias=bias,
        mask=mask,
        block_mask=block_mask,
        sinks=sinks,
        q_lens=q_lens,
        kv_lens=kv_lens,
    )
    if swapped:
        o = swap_heads(o)
    return (o, lse) if return_lse else o


def attention_backward(
    d_o: Array,
    o: Array,
    lse: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    d_lse: Array | None = None,
    causal: bool = False,
    alignment: Alignment = "bottom_right",
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    block_mask: BlockMask | None = None,
    sinks: Array | None = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    scale: float | None = None,
    deterministic: bool = False,
) -> dict[str, Array]:
    """Gradients of `attention`, or with cu_seqlens of `attention_varlen`, for arrays of libraries
    other than PyTorch, whose tensors have autograd.

    Args:
        d_o: the gradient of o, shaped as it.
        o: what the forward pass gave.
        lse: what it gave with return_lse.
        d_lse: the gradient of lse, if there is one.

    The others are those of the forward pass, and so are the exceptions.

    Returns:
        Gradients named "q", "k", "v", and "bias" and "sinks" if those are given.
    """
    if torch is not None and isinstance(q, torch.Tensor):
        raise ValueError("q: a PyTorch tensor, expected another array: use autograd")
    settings = read_settings(
        causal=causal,
        alignment=alignment,
        window=window,
        softcap=softcap,
        dropout_p=0.0,
        scale=scale,
        precision="exact",
        plan=None,
        layer=None,
        deterministic=deterministic,
    )
    return _array_attention.gradients(
        d_o,
        d_lse,
        o,
        lse,
        q,
        k,
        v,
        settings,
        alibi=alibi,
        bias=bias,
        mask=mask,
        block_mask=block_mask,
        sinks=sinks,
        q_lens=q_lens,
        kv_lens=kv_lens,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    causal: bool = False,
    alignment: Alignment = "bottom_right",
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    block_mask: BlockMask | None = None,
    sinks: Array | None = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    precision: Precision = "exact",
    plan: str | os.PathLike | None = None,
    layer: int | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Attention within each of B sequences that lie one after another along one token axis.

    Args:
        q: [Tq, Hq, D].
        k: [Tk, Hkv, D].
        v: [Tk, Hkv, Dv].
        cu_seqlens_q: int32 [B + 1], on q's device: the first token of each sequence, and the end.
        cu_seqlens_k: the same for keys.
        bias: indexed within a sequence; its last sizes are at least the longest lengths. So is mask.

    The others are those of `attention`, which also says what is raised.

    Returns:
        o, [Tq, Hq, Dv]; with return_lse also lse, float32 [Hq, Tq].
    """
    settings = read_settings(
        causal=causal,
        alignment=alignment,
        window=window,
        softcap=softcap,
        dropout_p=dropout_p,
        scale=scale,
        precision=precision,
        plan=plan,
        layer=layer,
        deterministic=deterministic,
    )
    o, lse = _implementation(q)(
        q,
        k,
        v,
        settings,
        alibi=alibi,
        bias=bias,
        mask=mask,
        block_mask=block_mask,
        sinks=sinks,
        q_lens=q_lens,
        kv_lens=kv_lens,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )
    return (o, lse) if return_lse else o
