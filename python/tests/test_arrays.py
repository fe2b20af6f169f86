"""The package without PyTorch: NumPy arrays, and others through DLPack."""

import subprocess
import sys

import numpy as np
import pytest

import tessera


def expected(q, k, v):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def arrays(dtype=np.float32):
    random = np.random.default_rng(0)
    return [random.standard_normal((2, 3, 29, 16)).astype(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_numpy(dtype):
    q, k, v = arrays(dtype)
    o, lse = tessera.attention(q, k, v, return_lse=True)
    assert isinstance(o, np.ndarray) and o.dtype == dtype and lse.shape == (2, 3, 29)
    allowed = 8 * float(np.finfo(dtype).eps)
    assert np.abs(o - expected(*(x.astype(np.float64) for x in (q, k, v)))).max() < allowed


def test_numpy_strides_and_layout():
    q, k, v = arrays()
    o = tessera.attention(*(x.swapaxes(1, 2).copy() for x in (q, k, v)), layout="bshd")
    np.testing.assert_allclose(o.swapaxes(1, 2), expected(q, k, v), atol=1e-5)
    with pytest.raises(ValueError, match="last stride"):
        tessera.attention(q.swapaxes(2, 3), k, v)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients(packed):
    """Against PyTorch's autograd through the same kernels."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    if packed:
        shape = (20, 3, 16)
        starts = np.array([0, 8, 20], np.int32)
        options = dict(cu_seqlens_q=starts, cu_seqlens_k=starts, causal=True)
    else:
        shape = (2, 3, 20, 16)
        bias = random.standard_normal((1, 3, 20, 20)).astype(np.float32)
        sinks = random.standard_normal(3).astype(np.float32)
        options = dict(bias=bias, sinks=sinks, causal=True)
    q, k, v, d_o = (random.standard_normal(shape).astype(np.float32) for _ in range(4))
    forward = tessera.attention_varlen if packed else tessera.attention
    o, lse = forward(q, k, v, **options, return_lse=True)
    d_lse = random.standard_normal(lse.shape).astype(np.float32)
    got = tessera.attention_backward(d_o, o, lse, q, k, v, d_lse=d_lse, **options)
    tracked = {n: torch.from_numpy(x).requires_grad_() for n, x in zip("qkv", (q, k, v))}
    given = {n: torch.from_numpy(x) for n, x in options.items() if n != "causal"}
    tracked |= {n: t.requires_grad_() for n, t in given.items() if t.is_floating_point()}
    outputs = forward(**tracked | given, causal=True, return_lse=True)
    incoming = [torch.from_numpy(d_o), torch.from_numpy(d_lse)]
    expected = torch.autograd.grad(outputs, list(tracked.values()), incoming)
    assert list(got) == list(tracked)
    for name, e in zip(tracked, expected):
        assert isinstance(got[name], np.ndarray)
        np.testing.assert_allclose(got[name], e.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="use autograd"):
        tessera.attention_backward(d_o, o, lse, *(tracked[n] for n in "qkv"))


def test_read_only_arrays():
    q, k, v = arrays()
    q.flags.writeable = False
    np.testing.assert_allclose(tessera.attention(q, k, v), expected(q, k, v), atol=1e-5)


def test_block_mask_on_arrays():
    q, k, v = (np.random.default_rng(1).standard_normal((1, 1, 64, 16)) for _ in range(3))
    mask = tessera.BlockMask.from_blocks(np.eye(4, dtype=bool), 64, 64, block_q=16, block_kv=16)
    o = tessera.attention(q, k, v, block_mask=mask)
    np.testing.assert_allclose(o[:, :, :16], expected(*(x[:, :, :16] for x in (q, k, v))))


def test_varlen_on_arrays():
    q = np.random.default_rng(1).standard_normal((20, 2, 16))
    starts = np.array([0, 8, 20], np.int32)
    o = tessera.attention_varlen(q, q, q, starts, starts)
    first = q[:8].swapaxes(0, 1)
    np.testing.assert_allclose(o[:8].swapaxes(0, 1), expected(first, first, first))


def test_errors():
    q, k, v = arrays()
    with pytest.raises(ValueError, match="k: dtype f64, expected f32"):
        tessera.attention(q, k.astype(np.float64), v)
    with pytest.raises(TypeError, match="q: list"):
        tessera.explain([1.0], k, v)
    with pytest.raises(ValueError, match="dtype int64"):
        tessera.attention(q.astype(np.int64), k, v)
    with pytest.raises(ValueError, match="dropout_p"):
        tessera.attention(q, k, v, dropout_p=0.1)


class Exporter:
    """An array that offers DLPack and is none of NumPy's."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __array_namespace__(self):
        return np

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_dlpack():
    q, k, v = arrays()
    views = [Exporter(x[:, ::2]) for x in (q, k, v)]
    np.testing.assert_allclose(
        tessera.attention(*views), expected(*(x[:, ::2] for x in (q, k, v))), atol=1e-5
    )


@pytest.mark.parametrize("name", ["cupy", "jax.numpy"])
def test_gpu_arrays_of_other_libraries(gpu, name):
    xp = pytest.importorskip(name)
    q, k, v = arrays()
    o = tessera.attention(*(xp.asarray(x) for x in (q, k, v)))
    got = o.get() if hasattr(o, "get") else np.asarray(o)
    np.testing.assert_allclose(got, expected(q, k, v), atol=1e-4)


def test_package_without_pytorch():
    """Importing and computing needs no PyTorch; what needs it says so."""
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, tessera
q = np.ones((1, 1, 4, 16), np.float32)
assert np.allclose(tessera.attention(q, q, q), 1)
try:
    tessera.scaled_dot_product_attention
except ImportError:
    print("as expected")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "as expected", run.stderr
