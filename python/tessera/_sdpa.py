"""torch.nn.functional.scaled_dot_product_attention's signature and semantics, computed by Tessera."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ._attention import attention


def _broadcast(query, key, value, grouped: bool):
    """Leading dimensions of all three broadcast against each other, heads only if not grouped."""
    kept = 3 if grouped else 2
    lead = torch.broadcast_shapes(*(t.shape[:-kept] for t in (query, key, value)))
    return [t.expand(*lead, *t.shape[-kept:]) for t in (query, key, value)]


def _as_batch(t: torch.Tensor) -> torch.Tensor:
    """[..., H, S, D] as [B, H, S, D]."""
    while t.dim() < 4:
        t = t.unsqueeze(0)
    return t if t.dim() == 4 else t.flatten(0, t.dim() - 4)


def _as_scores(attn_mask: torch.Tensor, lead: tuple[int, ...], keys: int) -> torch.Tensor:
    """A mask that broadcasts to [..., Sq, Skv] as [B|1, H|1, Sq|1, Skv]."""
    if attn_mask.shape[-1] != keys:
        attn_mask = attn_mask.expand(*attn_mask.shape[:-1], keys)
    if attn_mask.dim() > 4:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:])
    attn_mask = _as_batch(attn_mask)
    return attn_mask if attn_mask.stride(-1) == 1 else attn_mask.contiguous()


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As torch.nn.functional.scaled_dot_product_attention, computed by Tessera.

    Args:
        query: [..., Hq, L, E].
        key: [..., H, S, E].
        value: [..., H, S, Ev].
        attn_mask: boolean (true = attend) or added to the scores; broadcasts to [..., Hq, L, S].
        dropout_p: applied whenever it is above 0.
        is_causal: aligned top-left; not together with attn_mask.
        scale: 1/√E unless given.
        enable_gqa: H may divide Hq.

    Returns:
        [..., Hq, L, Ev].

    Raises:
        ValueError: an argument is wrong.
        RuntimeError: nothing at hand can do it, or attn_mask and is_causal are both given.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError("attn_mask: given with is_causal=True, expected one of the two")
    if query.dim() < 2:
        raise ValueError(f"query: rank {query.dim()}, expected at least 2")
    query, key, value = _broadcast(query, key, value, enable_gqa)
    lead = query.shape[:-2]
    bias = mask = None
    if attn_mask is not None:
        scores = _as_scores(attn_mask, lead, key.shape[-2])
        bias, mask = (None, scores) if scores.dtype == torch.bool else (scores, None)
    o = attention(
        *(_as_batch(t) for t in (query, key, value)),
        causal=is_causal,
        alignment="top_left",
        bias=bias,
        mask=mask,
        dropout_p=dropout_p,
        scale=scale,
    )
    return o.reshape(*lead, *o.shape[-2:]) if len(lead) != 2 else o


@contextlib.contextmanager
def route_sdpa() -> Iterator[None]:
    """Within `with tessera.route_sdpa():` torch.nn.functional.scaled_dot_product_attention is
    Tessera's, for PyTorch's own modules too and on all threads; a call that Tessera cannot serve is
    an error. A name imported from torch.nn.functional before is not reached."""
    own = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = own
