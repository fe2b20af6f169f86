"""Hugging Face transformers: registers Tessera's attention by name.

    import tessera.huggingface
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="tessera")

`tessera` computes exactly; `tessera_sage8` and `tessera_sage4` name those precisions and raise as
long as no row of the table takes them.
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ._attention import attention
from ._block_mask import BlockMask

NAMES = {"tessera": "exact", "tessera_sage8": "sage8", "tessera_sage4": "sage4"}


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    *,
    precision: str = "exact",
    block_mask: BlockMask | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers' AttentionInterface calls it.

    Args:
        module: the layer; its `is_causal` counts if the argument is absent.
        query: [B, Hq, Sq, D].
        key: [B, Hkv, Skv, D].
        value: [B, Hkv, Skv, Dv].
        attention_mask: boolean (true = attend) or additive, [B, 1, Sq, Skv]; it contains causality.
        position_bias: added to the scores.
        s_aux: [Hq] logits of attention sinks.
        precision: as `tessera.attention` has it.
        block_mask: which blocks of the score matrix exist, besides the other masks.

    Returns:
        [B, Sq, Hq, Dv], and None in place of the attention weights.
    """
    rows, keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = rows > 1 and attention_mask is None and causal
    mask, bias = attention_mask, position_bias
    if mask is not None:
        mask = mask[..., :keys]
        if mask.dtype != torch.bool:
            mask, bias = None, mask if bias is None else bias + mask
    o = attention(
        query,
        key,
        value,
        causal=causal,
        alignment="top_left",  # keys behind the queries are a static cache's empty places
        mask=mask,
        bias=bias,
        block_mask=block_mask,
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.float(),
        dropout_p=dropout,
        scale=scaling,
        precision=precision,
    )
    return o.transpose(1, 2), None


def attention_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others,
) -> torch.Tensor | None:
    """A mask as transformers' AttentionMaskInterface asks for it, or None where the causal flag or
    nothing says as much.

    That is sdpa_mask, which on PyTorch before 2.14 makes a mask of the scores' size under
    torch.compile even then. Decoders that compute position_ids get one under torch.compile
    whatever this says, in case those tell of packed sequences; a name that is registered with
    AttentionInterface alone gets none, and must not be given padded or packed batches.
    """
    if torch.compiler.is_dynamo_compiling() and attention_mask is None:
        whole = local_size is None or kv_length < local_size
        if whole and allow_is_causal_skip and q_length == kv_length:
            return None
        if whole and allow_is_bidirectional_skip:
            return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        **others,
    )


def register() -> None:
    """Makes the names known to transformers; importing this module has done it."""
    for name, precision in NAMES.items():
        AttentionInterface.register(name, partial(attention_forward, precision=precision))
        AttentionMaskInterface.register(name, attention_mask)


register()
