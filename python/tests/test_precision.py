"""Quantised precisions and adaptive plans. Whichever row there is computes them; on a GPU without one
it must be an error."""

import json

import numpy as np
import pytest
import torch

import tessera

SHAPE = (1, 2, 24, 64)


def qkv(device, dtype=torch.bfloat16):
    return [torch.randn(SHAPE, device=device, dtype=dtype) for _ in range(3)]


def precisions_of(device):
    rows = [r for r in tessera.implementations() if r["device"] == device and r["available"]]
    return " ".join(r["supports"] for r in rows)


@pytest.fixture
def quantised(device):
    """The device, if a row there computes quantised attention."""
    if device == "cuda" and "sage8" not in precisions_of(device):
        q = torch.randn(SHAPE, device=device, dtype=torch.bfloat16)
        with pytest.raises(RuntimeError, match="sage8"):
            tessera.attention(q, q, q, precision="sage8")
        pytest.skip("no row computes sage8 on this GPU")
    return device


def cosine(a, b):
    a, b = (torch.as_tensor(x).double().flatten() for x in (a, b))
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("precision, number, least", [("sage8", 1, 0.999), ("sage4", 2, 0.98)])
def test_quantised_forward_and_exact_backward(quantised, precision, number, least):
    q, k, v = (t.requires_grad_() for t in qkv(quantised))
    exact = tessera.attention(q, k, v)
    o = tessera.attention(q, k, v, precision=precision)
    assert not torch.equal(o, exact) and cosine(o.detach(), exact.detach()) > least
    through_op, _ = torch.ops.tessera.attention(q, k, v, precision=number)
    assert torch.equal(through_op, o)
    d_o = torch.randn_like(o)
    got, expected = (torch.autograd.grad(x, (q, k, v), d_o) for x in (o, exact))
    for g, e in zip(got, expected):
        assert cosine(g, e) > least


def test_quantised_varlen(quantised):
    q, k, v = (t[0].transpose(0, 1) for t in qkv(quantised))
    starts = torch.tensor([0, 10, 24], dtype=torch.int32, device=quantised)
    o = tessera.attention_varlen(q, k, v, starts, starts, precision="sage8")
    assert cosine(o, tessera.attention_varlen(q, k, v, starts, starts)) > 0.999


@pytest.fixture
def plan(tmp_path):
    """A plan file for two heads of 64: sage8 in layer 0, exact in layer 1."""
    entries = [dict(layer=n, step=0, precision=p) for n, p in enumerate(("sage8", "exact"))]
    contents = dict(format="tessera-adaptive-plan", version=1, model="toy", heads_q=2, heads_kv=2)
    scheme = dict.fromkeys(("granularity", "smooth_q", "pv"), "automatic")
    scheme |= dict(smooth_k=True, smooth_v=False)
    path = tmp_path / "plan.json"
    contents |= dict(head_dim=64, quantization=scheme, entries=entries)
    path.write_text(json.dumps(contents))
    return path


def test_adaptive_plan(quantised, plan):
    q, k, v = qkv(quantised)
    expected = [tessera.attention(q, k, v, precision=p) for p in ("sage8", "exact")]

    def run(q, layer):
        return tessera.attention(q, k, v, precision="adaptive", plan=str(plan), layer=layer)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for layer in (0, 1):
        assert torch.equal(run(q, layer), expected[layer])
        assert torch.equal(compiled(q, layer), expected[layer])
    text = tessera.explain(q, k, v, precision="adaptive", plan=plan, layer=0)
    assert "sage8" in text
    with pytest.raises(ValueError, match="layer 2 step 0"):
        run(q, 2)
    with pytest.raises(ValueError, match="made for toy with heads 2/2"):
        one_head = (t[:, :1] for t in (q, k, v))
        tessera.attention(*one_head, precision="adaptive", plan=plan, layer=0)
    plan.write_text(plan.read_text().replace("sage8", "exact"))
    assert torch.equal(run(q, 0), expected[1])


def test_adaptive_plan_on_arrays(plan):
    q, k, v = (t.numpy() for t in qkv("cpu", torch.float32))
    got = tessera.attention(q, k, v, precision="adaptive", plan=plan, layer=0)
    assert np.array_equal(got, tessera.attention(q, k, v, precision="sage8"))


def test_bad_plans(device, tmp_path):
    q, k, v = qkv(device)
    for options in (dict(precision="adaptive"), dict(precision="adaptive", layer=0)):
        with pytest.raises(ValueError, match="plan, layer: absent"):
            tessera.attention(q, k, v, **options)
    missing = dict(precision="adaptive", plan=tmp_path / "none.json", layer=0)
    with pytest.raises(ValueError, match="none.json"):
        tessera.attention(q, k, v, **missing)
    with pytest.raises(ValueError, match="none.json"):
        tessera.attention(*(t.cpu().float().numpy() for t in (q, k, v)), **missing)
