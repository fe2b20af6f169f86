"""Block masks: builders, FlexAttention's masks, and attention over them."""

import naive
import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import tessera
from tessera import BlockMask

SMALL = dict(block_q=32, block_kv=32)
MASKS = {
    "causal": lambda: BlockMask.causal(100, 130, **SMALL),
    "butterfly": lambda: BlockMask.butterfly(128, 128, **SMALL),
    "local_global": lambda: BlockMask.local_global(128, 160, local=1, global_=1, **SMALL),
    "strided": lambda: BlockMask.strided(128, 128, local=1, stride=2, **SMALL),
    "random": lambda: BlockMask.random(128, 128, density=0.4, seed=3, heads=2, **SMALL),
    "blocks": lambda: BlockMask.from_blocks(np.eye(4, dtype=bool), 128, 128, **SMALL),
    "dense": lambda: BlockMask.from_dense(torch.rand(2, 1, 50, 70) > 0.5, block_q=16, block_kv=48),
    "predicate": lambda: BlockMask.from_predicate(
        lambda b, h, i, j: (i + j) % 3 == 0, 40, 40, **SMALL
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_over_blocks(device, name):
    mask = MASKS[name]()
    dense = torch.from_numpy(mask.to_dense()).to(device)
    rows, keys = dense.shape[-2:]
    q = torch.randn(2, 2, rows, 16, device=device, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 16, device=device, requires_grad=True) for _ in "kv")
    o = tessera.attention(q, k, v, block_mask=mask.to(device))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected, _ = naive.attention(*exact, mask=dense)
    expected = expected.nan_to_num()
    naive.close(o, expected, torch.float32)
    got = torch.autograd.grad(o.sum(), (q, k, v))
    want = torch.autograd.grad(expected.sum(), exact)
    for g, e in zip(got, want):
        naive.close(g, e.nan_to_num(), torch.float32)


def test_masks_on_the_cpu_need_no_move():
    mask = BlockMask.butterfly(128, 128, **SMALL)
    q = torch.randn(1, 1, 128, 16)
    moved = tessera.attention(q, q, q, block_mask=mask.to("cpu"))
    assert torch.equal(tessera.attention(q, q, q, block_mask=mask), moved)


def test_from_dense_keeps_every_element():
    dense = np.random.default_rng(0).random((2, 3, 61, 45)) > 0.5
    assert np.array_equal(BlockMask.from_dense(dense, block_q=16, block_kv=16).to_dense(), dense)


@pytest.mark.parametrize("sizes", [(256, 256), (200, 300)], ids=str)
def test_from_flex(sizes):
    rows, keys = sizes

    def sliding(b, h, i, j):
        return (i >= j) & (i - j < 150 + 20 * h)

    flex = create_block_mask(sliding, 1, 2, rows, keys, device="cpu", BLOCK_SIZE=64)
    mask = BlockMask.from_flex(flex)
    i, j = np.arange(rows)[:, None], np.arange(keys)
    expected = np.stack([(i >= j) & (i - j < 150 + 20 * h) for h in range(2)])[None]
    assert np.array_equal(mask.to_dense(), expected)
    assert mask.density < 1 and mask.sizes[7] < mask.sizes[6]


def test_bad_masks():
    with pytest.raises(ValueError, match="multiple of 16"):
        BlockMask.causal(64, 64, block_q=20)
    with pytest.raises(ValueError, match="density"):
        BlockMask.random(64, 64, density=0.0)
    q = torch.randn(1, 1, 64, 16)
    with pytest.raises(ValueError, match="block_mask: seq_q 128, expected 64"):
        tessera.attention(q, q, q, block_mask=BlockMask.causal(128, 64).to("cpu"))
    with pytest.raises(TypeError, match="block_mask: Tensor, expected a tessera.BlockMask"):
        tessera.attention(q, q, q, block_mask=torch.ones(1, 1))
    with pytest.raises(ZeroDivisionError):
        BlockMask.from_predicate(lambda b, h, i, j: 1 // 0, 16, 16)


def test_masks_are_not_moved_silently(gpu):
    q = torch.randn(1, 1, 128, 16, device=gpu)
    with pytest.raises(ValueError, match="block_mask: device cpu:0, expected q's cuda:0"):
        tessera.attention(q, q, q, block_mask=BlockMask.causal(128, 128))
