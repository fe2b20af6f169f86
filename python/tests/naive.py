"""Attention by definition, with the score matrix in memory."""

import torch


def attention(
    q,
    k,
    v,
    causal=False,
    alignment="bottom_right",
    window=None,
    softcap=None,
    alibi=None,
    bias=None,
    mask=None,
    sinks=None,
    q_lens=None,
    kv_lens=None,
    scale=None,
):
    """o and lse of [B, H, S, D] tensors in their dtype."""
    rows, keys = q.shape[2], k.shape[2]
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(rows, device=q.device)[:, None]
    j = torch.arange(keys, device=q.device)[None, :]
    at = i + (keys - rows if alignment == "bottom_right" else 0)
    if bias is not None:
        scores = scores + bias
    if alibi is not None:
        slopes = alibi.view(-1, q.shape[1], 1, 1).to(q.dtype)
        scores = scores - slopes * (at - j).abs()
    visible = torch.ones(q.shape[0], 1, rows, keys, dtype=torch.bool, device=q.device)
    if causal:
        visible = visible & (j <= at)
    if window is not None:
        left, right = window
        visible = visible & ((left < 0) | (j >= at - left)) & ((right < 0) | (j <= at + right))
    if mask is not None:
        visible = visible & mask
    if q_lens is not None:
        visible = visible & (i < q_lens.view(-1, 1, 1, 1))
    if kv_lens is not None:
        visible = visible & (j < kv_lens.view(-1, 1, 1, 1))
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks.to(q.dtype).view(1, -1, 1, 1).expand(q.shape[0], -1, rows, 1)
        lse = torch.logsumexp(torch.cat([scores, sink], dim=-1), dim=-1)
    else:
        lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    weights = torch.where(torch.isneginf(scores), 0, weights)
    return weights @ v, lse


def close(got, expected, dtype):
    """Within a few roundings of `dtype` of what float64 gives, relative to the largest value."""
    allowed = 8 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())
    difference = (got.double() - expected).abs().max().item()
    assert difference <= allowed, f"{difference} > {allowed}"
