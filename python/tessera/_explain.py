"""Why which implementation runs."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from . import _library
from ._arguments import Layout, read_settings, swaps_heads
from ._array_attention import Call
from ._arrays import swap_heads
from ._block_mask import BlockMask
from ._library import call


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    backward: bool = False,
    causal: bool = False,
    alignment: str = "bottom_right",
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    alibi: Any | None = None,
    bias: Any | None = None,
    mask: Any | None = None,
    block_mask: BlockMask | None = None,
    sinks: Any | None = None,
    q_lens: Any | None = None,
    kv_lens: Any | None = None,
    cu_seqlens_q: Any | None = None,
    cu_seqlens_k: Any | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    precision: str = "exact",
    plan: str | os.PathLike | None = None,
    layer: int | None = None,
    layout: Layout = "bhsd",
    deterministic: bool = False,
) -> str:
    """Says which row of the table would compute `attention` with these arguments, with its config
    and workspace, and why each earlier row is passed over. Nothing is computed.

    Args:
        backward: also the backward pass.

    The others are those of `attention` and `attention_varlen`, and so are the exceptions.
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
    if swaps_heads(layout):
        q, k, v = (swap_heads(x) for x in (q, k, v))
    described = Call(
        settings,
        block_mask,
        q=q,
        k=k,
        v=v,
        alibi=alibi,
        bias=bias,
        mask=mask,
        sinks=sinks,
        q_lens=q_lens,
        kv_lens=kv_lens,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )
    passes = _library.FORWARD | (_library.BACKWARD if backward else 0)
    made = described.plan(passes)
    text = ctypes.c_char_p()
    call("tessera_plan_explain", made.pointer, ctypes.byref(text))
    return text.value.decode()
