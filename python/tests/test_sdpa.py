"""tessera.scaled_dot_product_attention against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

import tessera


def close_to_pytorch(device, shapes, mask=None, **options):
    tensors = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    got = tessera.scaled_dot_product_attention(*tensors, attn_mask=mask, **options)
    if mask is not None:  # PyTorch's kernels on GPUs want each row of it in memory
        mask = mask.expand(*mask.shape[:-1], shapes[1][-2]).contiguous()
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=mask, **options)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    d_o = torch.randn_like(expected)
    for g, e in zip(*(torch.autograd.grad(o, tensors, d_o) for o in (got, expected))):
        torch.testing.assert_close(g, e, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lead", [(2, 3), (3,), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_leading_dimensions(device, lead, is_causal):
    shapes = [(*lead, 19, 16), (*lead, 27, 16), (*lead, 27, 24)]
    close_to_pytorch(device, shapes, is_causal=is_causal)


def test_masks_broadcast(device):
    shapes = [(2, 3, 19, 16), (2, 3, 27, 16), (2, 3, 27, 16)]
    for mask_shape in ((19, 27), (2, 1, 1, 27), (1, 3, 19, 27), (19, 1)):
        close_to_pytorch(device, shapes, torch.randn(mask_shape, device=device))
        visible = torch.rand(mask_shape, device=device) > 0.2
        visible[..., 0] = True
        close_to_pytorch(device, shapes, visible)


def test_scale_and_groups(device):
    shapes = [(2, 6, 19, 16), (2, 2, 27, 16), (2, 2, 27, 16)]
    close_to_pytorch(device, shapes, enable_gqa=True, scale=0.3)


def test_heads_broadcast(device):
    q, k = torch.randn(2, 6, 19, 16, device=device), torch.randn(2, 1, 27, 16, device=device)
    got = tessera.scaled_dot_product_attention(q, k, k)
    whole = k.expand(-1, 6, -1, -1)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, whole, whole))


def test_mask_and_causal_are_exclusive(device):
    q = torch.randn(1, 1, 8, 16, device=device)
    with pytest.raises(RuntimeError, match="is_causal"):
        tessera.scaled_dot_product_attention(q, q, q, torch.zeros(8, 8, device=device), 0.0, True)


def test_routing_reaches_modules(device, monkeypatch):
    layer = torch.nn.MultiheadAttention(32, 4, batch_first=True, device=device)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    expected, _ = layer(x, x, x, need_weights=False)
    calls = []
    own = tessera._sdpa.attention
    monkeypatch.setattr(tessera._sdpa, "attention", lambda *a, **n: calls.append(1) or own(*a, **n))
    with tessera.route_sdpa():
        got, _ = layer(x, x, x, need_weights=False)
    assert calls
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    layer(x, x, x, need_weights=False)
    assert len(calls) == 1


def test_routing_reaches_compiled_code(device):
    def run(q):
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    q = torch.randn(1, 2, 9, 16, device=device)
    nodes = []

    def note(graph, inputs):
        nodes.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    with tessera.route_sdpa():
        got = torch.compile(run, fullgraph=True, backend=note)(q)
    assert torch.ops.tessera.attention.default in nodes
    torch.testing.assert_close(got, run(q), atol=1e-5, rtol=1e-4)
