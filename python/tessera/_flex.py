"""FlexAttention's block masks as compressed sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_ELEMENTS_AT_ONCE = 1 << 24


def _listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Which blocks the first `counts` of `indices` name: bool [B, H, q_blocks, kv_blocks]."""
    slots = torch.arange(indices.shape[-1], device=indices.device)
    used = slots < counts.unsqueeze(-1)
    listed = torch.zeros(indices.shape, dtype=torch.int32, device=indices.device)
    # Unused slots hold any index: they add 0.
    return listed.scatter_add(-1, indices.long(), used.to(torch.int32)) > 0


def _partial_bits(
    mask_mod: Any, where: torch.Tensor, block: tuple[int, int], sizes: tuple[int, int]
) -> np.ndarray:
    """Bits of the blocks `where` [P, 4] (batch, head, query block, key block), as the C interface
    packs them: uint32 [P · block_q · words]."""
    block_q, block_kv = block
    words = -(-block_kv // 32)
    packed = np.zeros((len(where), block_q, 4 * words), np.uint8)
    evaluate = torch.vmap(mask_mod)
    step = max(1, _ELEMENTS_AT_ONCE // (block_q * block_kv))
    for begin in range(0, len(where), step):
        b, h, q_block, kv_block = where[begin : begin + step].unbind(-1)
        shape = (len(b), block_q, block_kv)
        i = q_block[:, None, None] * block_q + torch.arange(block_q, device=b.device)[:, None]
        j = kv_block[:, None, None] * block_kv + torch.arange(block_kv, device=b.device)
        inside = (i < sizes[0]) & (j < sizes[1])
        arguments = [b[:, None, None], h[:, None, None], i.clamp(max=sizes[0] - 1)]
        arguments.append(j.clamp(max=sizes[1] - 1))
        flat = [argument.expand(shape).reshape(-1) for argument in arguments]
        bits = (evaluate(*flat).reshape(shape) & inside).cpu().numpy()
        rows = np.packbits(bits, axis=-1, bitorder="little")
        packed[begin : begin + len(b), :, : rows.shape[-1]] = rows
    return packed.reshape(-1).view(np.uint32)


def csr_of(block_mask: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """row_offsets, columns, bits_index and bits of FlexAttention's BlockMask."""
    partial = _listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = torch.zeros_like(partial)
    if block_mask.full_kv_num_blocks is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    partial &= ~full
    where = (partial | full).nonzero()  # in the order of rows, columns ascending
    is_partial = partial[tuple(where.unbind(-1))].cpu().numpy()
    counts = (partial | full).sum(-1).flatten().cpu().numpy()
    row_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns = where[:, -1].cpu().numpy().astype(np.int32)
    bits_index = np.where(is_partial, np.cumsum(is_partial) - 1, -1).astype(np.int32)
    bits = _partial_bits(
        block_mask.mask_mod,
        where[torch.from_numpy(is_partial).to(where.device)],
        block_mask.BLOCK_SIZE,
        block_mask.seq_lengths,
    )
    return row_offsets, columns, bits_index, bits
