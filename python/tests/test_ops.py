"""The operators under PyTorch's machinery: opcheck, compile, export, CUDA graphs, streams."""

import pytest
import torch

import tessera


def qkv(device, rows=32, keys=48, dtype=torch.float32):
    q = torch.randn(2, 4, rows, 16, device=device, dtype=dtype, requires_grad=True)
    k, v = (
        torch.randn(2, 2, keys, 16, device=device, dtype=dtype, requires_grad=True) for _ in "kv"
    )
    return q, k, v


def test_opcheck(device):
    q, k, v = qkv(device)
    bias = torch.randn(1, 4, 32, 48, device=device, requires_grad=True)
    sinks = torch.randn(4, device=device, requires_grad=True)
    op = torch.ops.tessera.attention.default
    torch.library.opcheck(op, (q, k, v), dict(causal=True))
    torch.library.opcheck(op, (q, k, v, bias, None, None, sinks))
    swapped = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    torch.library.opcheck(op, tuple(t.requires_grad_() for t in swapped))
    starts = torch.tensor([0, 10, 32], device=device, dtype=torch.int32)
    packed = [torch.randn(32, 2, 16, device=device, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(op, (*packed, *(6 * [None]), starts, starts))


def test_opcheck_quantised():
    """On the CPU, where the scalar model of the scheme takes every problem."""
    q, k, v = (t.detach() for t in qkv("cpu"))
    op = torch.ops.tessera.attention.default
    torch.library.opcheck(op, (q, k, v), dict(precision=1))


def test_opcheck_backward(device):
    q, k, v = (t.detach() for t in qkv(device))
    o, lse = torch.ops.tessera.attention(q, k, v)
    torch.library.opcheck(
        torch.ops.tessera.attention_backward.default,
        (torch.randn_like(o), None, o, lse, 7, q, k, v),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_compile_fullgraph_with_dynamic_shapes(device, dropout_p):
    def run(q, k, v):
        o = tessera.attention(q * 2, k, v, causal=True, dropout_p=dropout_p)
        return o.transpose(1, 2).flatten(-2)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (32, 40, 17):
        inputs = qkv(device, rows, rows)
        torch.manual_seed(1)
        expected = run(*inputs)
        torch.manual_seed(1)
        got = compiled(*inputs)
        torch.testing.assert_close(got, expected)
        grads = torch.autograd.grad(got.square().sum(), inputs)
        for g, e in zip(grads, torch.autograd.grad(expected.square().sum(), inputs)):
            torch.testing.assert_close(g, e)


def test_compile_varlen_with_dynamic_shapes(device):
    def run(q, starts):
        return tessera.attention_varlen(q, q, q, starts, starts, causal=True)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (20, 33):
        q = torch.randn(tokens, 2, 16, device=device, requires_grad=True)
        starts = torch.tensor([0, 7, tokens], dtype=torch.int32, device=device)
        got, expected = compiled(q, starts), run(q, starts)
        torch.testing.assert_close(got, expected)
        g, e = (torch.autograd.grad(o.square().sum(), q)[0] for o in (got, expected))
        torch.testing.assert_close(g, e)


def test_compile_with_layout(device):
    def run(q, k, v):
        return tessera.attention(q, k, v, layout="bshd")

    torch.compiler.reset()
    inputs = [t.detach().transpose(1, 2) for t in qkv(device)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), run(*inputs))


def test_compile_with_inductor(gpu):
    def run(q, k, v):
        return tessera.attention(q * 2, k, v, causal=True).relu()

    torch.compiler.reset()
    inputs = qkv(gpu)
    got = torch.compile(run, fullgraph=True)(*inputs)
    torch.testing.assert_close(got, run(*inputs))
    grads = torch.autograd.grad(got.sum(), inputs)
    for g, e in zip(grads, torch.autograd.grad(run(*inputs).sum(), inputs)):
        torch.testing.assert_close(g, e)


def test_compile_with_block_mask(device):
    mask = tessera.BlockMask.butterfly(256, 256, block_q=32, block_kv=32).to(device)
    inputs = [torch.randn(1, 2, 256, 16, device=device) for _ in range(3)]

    def run(q, k, v):
        return tessera.attention(q, k, v, block_mask=mask)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), run(*inputs))


def test_export(device):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return tessera.attention(q, k, v, causal=True)

    rows = torch.export.Dim("rows", min=4, max=512)
    shapes = {name: {2: rows} for name in "qkv"}
    exported = torch.export.export(
        Layer(), tuple(t.detach() for t in qkv(device, 32, 32)), dynamic_shapes=shapes
    )
    inputs = [t.detach() for t in qkv(device, 50, 50)]
    torch.testing.assert_close(exported.module()(*inputs), Layer()(*inputs))


def test_cuda_graph(gpu):
    inputs = qkv(gpu, dtype=torch.bfloat16)
    d_o = torch.randn_like(inputs[0])

    def step():
        o = tessera.attention(*inputs, causal=True)
        return o, *torch.autograd.grad(o, inputs, d_o)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for t in inputs:
        t.detach().normal_()
    graph.replay()
    for got, expected in zip(captured, step()):
        torch.testing.assert_close(got, expected)


def test_compile_with_cuda_graphs(gpu):
    def run(q, k, v):
        return tessera.attention(q * 2, k, v, causal=True).relu()

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):  # warm up, capture, replay
        torch.compiler.cudagraph_mark_step_begin()
        inputs = qkv(gpu)
        got = compiled(*inputs)
        expected = run(*inputs)
        torch.testing.assert_close(got, expected)
        grads = torch.autograd.grad(got.sum(), inputs)
        for g, e in zip(grads, torch.autograd.grad(expected.sum(), inputs)):
            torch.testing.assert_close(g, e)


def test_dropout_is_refused_while_a_graph_is_captured(gpu):
    q, k, v = (t.detach() for t in qkv(gpu))
    with pytest.raises(ValueError, match="dropout_p: above 0 while a CUDA graph is captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            tessera.attention(q, k, v, dropout_p=0.1)


def test_current_stream(gpu):
    q, k, v = (t.detach() for t in qkv(gpu, 512, 512))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        q2 = q * 3
        o = tessera.attention(q2, k, v)
    stream.synchronize()
    torch.testing.assert_close(o, tessera.attention(q * 3, k, v))
