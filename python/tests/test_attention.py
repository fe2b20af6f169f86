"""tessera.attention on PyTorch tensors against the definition in float64."""

import subprocess
import sys

import naive
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import tessera

B, HQ, HKV, SQ, SKV, D, DV = 2, 4, 2, 37, 53, 40, 24
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

FEATURES = {
    "plain": {},
    "causal": dict(causal=True),
    "causal top-left": dict(causal=True, alignment="top_left"),
    "window": dict(window=(9, 4)),
    "causal window": dict(causal=True, window=(11, -1)),
    "softcap": dict(softcap=3.0, scale=0.5),
    "alibi": dict(alibi=lambda d: torch.rand(HQ, device=d), causal=True),
    "bias": dict(bias=lambda d: torch.randn(B, 1, SQ, SKV, device=d)),
    "broadcast bias": dict(bias=lambda d: torch.randn(1, HQ, 1, SKV, device=d)),
    "mask": dict(mask=lambda d: torch.rand(B, 1, SQ, SKV, device=d) > 0.3),
    "sinks": dict(sinks=lambda d: torch.randn(HQ, device=d)),
    "lengths": dict(
        q_lens=lambda d: torch.tensor([SQ, 20], dtype=torch.int32, device=d),
        kv_lens=lambda d: torch.tensor([31, SKV], dtype=torch.int32, device=d),
    ),
}


def qkv(device, dtype=torch.float32, layout="bhsd"):
    shapes = [(B, HQ, SQ, D), (B, HKV, SKV, D), (B, HKV, SKV, DV)]
    if layout == "bshd":
        shapes = [(b, s, h, d) for b, h, s, d in shapes]
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]


def options_on(device, options):
    return {name: value(device) if callable(value) else value for name, value in options.items()}


def wide(t):
    if isinstance(t, torch.Tensor) and t.is_floating_point():
        return t.detach().double().requires_grad_(t.requires_grad)
    return t


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_results_and_gradients(device, dtype, feature):
    inputs = qkv(device, dtype)
    options = options_on(device, FEATURES[feature])
    for name in ("bias", "sinks"):
        if name in options:
            options[name].requires_grad_()
    o, lse = tessera.attention(*inputs, **options, return_lse=True)
    exact_inputs = [wide(t) for t in inputs]
    exact_options = {name: wide(value) for name, value in options.items()}
    exact_o, exact_lse = naive.attention(*exact_inputs, **exact_options)
    assert o.dtype == dtype and lse.dtype == torch.float32
    naive.close(o, exact_o, dtype)
    finite = exact_lse.isfinite()
    assert torch.equal(finite, lse.isfinite())
    naive.close(lse[finite], exact_lse[finite], torch.float32)

    d_o = torch.randn_like(o)
    d_lse = torch.where(finite, torch.randn_like(lse), 0)
    of = [
        t for t in (*inputs, *options.values()) if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    exact_of = [
        t
        for t in (*exact_inputs, *exact_options.values())
        if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    got = torch.autograd.grad([o, lse], of, [d_o, d_lse])
    exact_lse = torch.where(finite, exact_lse, 0)
    expected = torch.autograd.grad([exact_o, exact_lse], exact_of, [d_o.double(), d_lse.double()])
    for g, e in zip(got, expected):
        naive.close(g, e, dtype)


@pytest.mark.parametrize("packed", [False, True])
def test_strided_inputs_are_used_where_they_lie(device, packed):
    """Q, k and v as views of one projection's output; o in their memory order, gradients too."""
    qkv_ = torch.randn(B, SQ, 3, HQ, D, device=device, requires_grad=True)
    views = [t.transpose(1, 2) for t in qkv_.unbind(2)] if packed else qkv_.unbind(2)
    o = tessera.attention(*views, causal=True, layout="bhsd" if packed else "bshd")
    rows = o.transpose(1, 2) if packed else o
    assert rows.is_contiguous()
    exact = qkv_.detach().double().requires_grad_()
    expected, _ = naive.attention(*(t.transpose(1, 2) for t in exact.unbind(2)), causal=True)
    naive.close(rows, expected.transpose(1, 2), torch.float32)
    rows.sum().backward()
    expected.sum().backward()
    naive.close(qkv_.grad, exact.grad, torch.float32)


def test_no_copies_of_inputs(gpu):
    """A pass allocates o, lse and workspace and nothing of the inputs' size."""
    wide_ = torch.randn(1, 4096, 3, 16, 64, device=gpu, dtype=torch.bfloat16)
    q, k, v = (t.transpose(1, 2) for t in wide_.unbind(2))
    tessera.attention(q, k, v, causal=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    o = tessera.attention(q, k, v, causal=True)
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 1.5 * o.numel() * o.element_size()


def test_zero_sizes_and_rows_without_keys(device):
    q = torch.randn(1, 2, 3, 16, device=device, requires_grad=True)
    k = torch.randn(1, 2, 0, 16, device=device, requires_grad=True)
    o, lse = tessera.attention(q, k, k, return_lse=True)
    assert torch.equal(o, torch.zeros_like(q)) and torch.isneginf(lse).all()
    o.sum().backward()
    assert torch.equal(q.grad, torch.zeros_like(q))
    empty = torch.randn(0, 2, 3, 16, device=device)
    assert tessera.attention(empty, empty, empty).shape == (0, 2, 3, 16)


def test_varlen(device):
    lengths_q, lengths_k = [5, 0, 31, 17], [9, 4, 31, 2]
    starts = [
        torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        for lengths in (lengths_q, lengths_k)
    ]
    q = torch.randn(sum(lengths_q), HQ, D, device=device, requires_grad=True)
    k, v = (torch.randn(sum(lengths_k), HKV, D, device=device, requires_grad=True) for _ in "kv")
    o, lse = tessera.attention_varlen(q, k, v, *starts, causal=True, return_lse=True)
    assert lse.shape == (HQ, sum(lengths_q))
    grads = torch.autograd.grad(o.sum(), (q, k, v))
    exact = [wide(t) for t in (q, k, v)]
    parts = []
    for n, (rows, keys) in enumerate(zip(lengths_q, lengths_k)):
        begin_q, begin_k = starts[0][n], starts[1][n]
        one = [
            t[begin : begin + length].transpose(0, 1).unsqueeze(0)
            for t, begin, length in zip(exact, (begin_q, begin_k, begin_k), (rows, keys, keys))
        ]
        if rows:
            parts.append(naive.attention(*one, causal=True)[0][0].transpose(0, 1))
    expected = torch.cat(parts)
    naive.close(o, expected, torch.float32)
    for g, e in zip(grads, torch.autograd.grad(expected.sum(), exact)):
        naive.close(g, e, torch.float32)


def test_dropout_follows_the_generator(device):
    q, k, v = qkv(device)

    def run(seed):
        torch.manual_seed(seed)
        return tessera.attention(q, k, v, dropout_p=0.4)

    assert torch.equal(run(7), run(7))
    assert not torch.equal(run(7), run(8))
    torch.manual_seed(3)
    first, second = (tessera.attention(q, k, v, dropout_p=0.4) for _ in range(2))
    assert not torch.equal(first, second)


def test_dropout_keeps_the_mean(device):
    """Of many draws on constant v: what is kept is scaled by 1 / (1 − p)."""
    q, k = (torch.randn(1, 8, 256, 32, device=device) for _ in "qk")
    o = tessera.attention(q, k, torch.ones_like(k), dropout_p=0.25)
    assert abs(o.mean().item() - 1) < 0.01


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_recomputes_the_same_dropout(device, reentrant):
    q, k, v = qkv(device)

    def run(*inputs):
        return tessera.attention(*inputs, dropout_p=0.3, causal=True)

    torch.manual_seed(5)
    plain = torch.autograd.grad(run(q, k, v).square().sum(), (q, k, v))
    torch.manual_seed(5)
    o = checkpoint(run, q, k, v, use_reentrant=reentrant)
    o.square().sum().backward()
    for t, expected in zip((q, k, v), plain):
        torch.testing.assert_close(t.grad, expected)


def test_gradcheck_f64():
    """On the CPU the reference computes in float64: analytic against numeric gradients."""
    torch.manual_seed(0)
    q = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 1, 6, 4, dtype=torch.float64, requires_grad=True) for _ in "kv")
    bias = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, bias):
        return tessera.attention(q, k, v, bias=bias, causal=True, return_lse=True)

    assert torch.autograd.gradcheck(run, (q, k, v, bias))


def test_gradcheck_f32(device):
    q, k, v = (torch.randn(1, 2, 5, 16, device=device, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda *t: tessera.attention(*t), (q, k, v), eps=1e-2, atol=5e-3, rtol=5e-3, nondet_tol=1e-5
    )


def test_autocast(device):
    q, k, v = qkv(device)
    sinks = torch.randn(HQ, device=device, requires_grad=True)
    bias = torch.randn(1, 1, SQ, SKV, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        o = tessera.attention(q, k, v, sinks=sinks, bias=bias)
    assert o.dtype == torch.bfloat16
    grads = torch.autograd.grad(o.float().sum(), (q, k, v, sinks))
    assert [g.dtype for g in grads] == 4 * [torch.float32]
    low = [t.bfloat16() for t in (q, k, v)]
    assert torch.equal(o, tessera.attention(*low, sinks=sinks, bias=bias))


def test_deterministic_gradients_repeat(device):
    q, k, v = qkv(device, torch.bfloat16)

    def grads():
        return torch.autograd.grad(
            tessera.attention(q, k, v, causal=True, deterministic=True).float().sum(), (q, k, v)
        )

    for a, b in zip(grads(), grads()):
        assert torch.equal(a, b)


def test_threads_are_pytorchs():
    """A pass runs on the threads that PyTorch has, one or more, and starts none of its own."""
    code = """
import os, torch, tessera
def run(attend):
    q = torch.ones(1, 8, 512, 64).relu().requires_grad_()
    attend(q).sum().backward()
    return q.grad, len(os.listdir("/proc/self/task"))
for threads in (3, 1):
    torch.set_num_threads(threads)
    theirs, before = run(lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    ours, after = run(lambda q: tessera.attention(q, q, q))
    torch.testing.assert_close(ours, theirs)
    print(before == after, end=" ")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True"], run.stdout + run.stderr


def cases_of_bad_input(device):
    q, k, v = (torch.randn(1, 2, 8, 16, device=device) for _ in range(3))
    slopes = torch.rand(2, device=device)
    return {
        "rank": (lambda: tessera.attention(q[0], k, v), "q: rank 3, expected 4"),
        "heads": (lambda: tessera.attention(q[:, :1], k, v), "multiple of k's 2"),
        "head dim": (lambda: tessera.attention(q, k[..., :8], v), "k: shape"),
        "dtype": (lambda: tessera.attention(q, k.half(), v), "k: dtype f16, expected f32"),
        "int dtype": (lambda: tessera.attention(q.long(), k, v), "q: dtype"),
        "last stride": (lambda: tessera.attention(q.mT, k.mT, v.mT), "last stride 16, expected 1"),
        "bias shape": (lambda: tessera.attention(q, k, v, bias=q), "bias: shape"),
        "mask dtype": (lambda: tessera.attention(q, k, v, mask=q @ k.mT), "mask: dtype f32"),
        "dropout": (lambda: tessera.attention(q, k, v, dropout_p=1.0), "dropout_p: 1"),
        "softcap": (lambda: tessera.attention(q, k, v, softcap=-1.0), "softcap: -1"),
        "window": (lambda: tessera.attention(q, k, v, window=(-2, 0)), "window.left: -2"),
        "window's form": (
            lambda: tessera.attention(q, k, v, window=3),
            "window: 3, expected (left",
        ),
        "k without memory": (
            lambda: tessera.attention(q, k.to("meta"), v),
            f"k: device meta, expected q's {q.device}",
        ),
        "alignment": (lambda: tessera.attention(q, k, v, alignment="left"), "alignment: 'left'"),
        "layout": (lambda: tessera.attention(q, k, v, layout="sbhd"), "layout: 'sbhd'"),
        "precision": (lambda: tessera.attention(q, k, v, precision="sage2"), "precision: 'sage2'"),
        "plan": (lambda: tessera.attention(q, k, v, plan="p.json"), "plan, layer"),
        "alibi's gradient": (
            lambda: tessera.attention(q, k, v, alibi=slopes.requires_grad_()),
            "alibi: requires grad",
        ),
        "lengths' dtype": (
            lambda: tessera.attention(q, k, v, kv_lens=torch.ones(1, device=device)),
            "kv_lens: dtype f32, expected i32",
        ),
        "wide lengths": (
            lambda: tessera.attention(q, k, v, kv_lens=torch.ones(1, device=device).long()),
            "kv_lens: dtype unknown to Tessera, expected int32",
        ),
    }


@pytest.mark.parametrize("case", cases_of_bad_input("cpu"))
def test_bad_input_is_a_value_error(device, case):
    run, message = cases_of_bad_input(device)[case]
    with pytest.raises(ValueError, match=r"[\s\S]*") as raised:
        run()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_tensor_is_named():
    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(TypeError, match="k: ndarray, expected a torch.Tensor as q is one"):
        tessera.attention(q, q.numpy(), q)
    with pytest.raises(TypeError, match="v: NoneType, expected a torch.Tensor"):
        tessera.attention(q, q, None)
    with pytest.raises(TypeError, match="mask: list, expected a torch.Tensor"):
        tessera.attention(q, q, q, mask=[True])


def test_devices_are_not_mixed(gpu):
    q = torch.randn(1, 2, 8, 16, device=gpu)
    with pytest.raises(ValueError, match="k: device cpu:0, expected q's cuda:0"):
        tessera.attention(q, q.cpu(), q)


def test_what_nothing_can_do_is_a_runtime_error(device):
    q = torch.randn(1, 1, 8, 600, device=device)
    with pytest.raises(ValueError, match="head dim: 600, expected 1 to 512"):
        tessera.attention(q, q, q)


def test_second_derivatives_are_refused(device):
    q = torch.randn(1, 1, 8, 16, device=device, requires_grad=True)
    (g,) = torch.autograd.grad(tessera.attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        g.sum().backward()


def test_other_kinds_of_derivatives_are_refused(device):
    """Rather than lost: forward mode, and torch.func's."""
    q = torch.randn(1, 1, 8, 16, device=device)
    with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda q: tessera.attention(q, q, q), (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivatives"):
        tessera.attention(q, forward_ad.make_dual(q, q), q)
    with pytest.raises(RuntimeError, match="expected torch.autograd"):
        torch.func.grad(lambda q: tessera.attention(q, q, q).sum())(q)


def test_explain_names_the_row(device):
    q, k, v = qkv(device)
    text = tessera.explain(q, k, v, causal=True, backward=True)
    assert text.count("chosen: ") == 2 and "causal" in text
    swapped = [t.detach().transpose(1, 2) for t in (q, k, v)]
    assert tessera.explain(*swapped, layout="bshd", causal=True, backward=True) == text
