"""torch.ops.tessera: loads the operators and gives them fake kernels, autograd and autocast.

The operators themselves (schemas, CPU and CUDA kernels) are in csrc/ops.cpp:

* `attention(q, k, v, …) -> (o, lse)`, dense with [B, H, S, D] tensors, packed with [T, H, D] ones
  and cu_seqlens, exact or quantised by `precision`;
* `attention_backward(d_o, d_lse, o, lse, gradients, q, k, v, …)`, whose results that nobody asked
  for are empty.
"""

from __future__ import annotations

import re
from itertools import compress
from pathlib import Path

import torch
from torch import library
from torch.autograd import forward_ad

MINIMUM = (2, 10)
# Bits of attention_backward's `gradients`, by position of the input in the schema.
GRADIENTS = {0: 1, 1: 2, 2: 4, 3: 8, 6: 16}
_BITS = tuple(GRADIENTS.values())
_RARE = 15  # arguments from here on, after `causal`, are no tensors and seldom given
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_AUTOCAST = {
    "cpu": torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU),
    "cuda": torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
}

_found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
if _found < MINIMUM:
    raise ImportError(
        f"torch: version {torch.__version__}, expected 2.10 or later: pip install -U torch"
    )
_file = Path(__file__).with_name("libtessera_torch.so")
if not _file.exists():
    raise ImportError(
        "tessera was built without PyTorch's operators, expected libtessera_torch.so: build it "
        "where PyTorch is installed with pip install --no-build-isolation ."
    )
torch.ops.load_library(_file)

attention = torch.ops.tessera.attention.default
attention_backward = torch.ops.tessera.attention_backward.default
NAMES = tuple(argument.name for argument in attention._schema.arguments)
_TENSORS = NAMES[3:12]  # besides q, k and v, and the seed, which is on the CPU always
_DEFAULTS = tuple(
    argument.default_value if argument.has_default_value() else None
    for argument in attention._schema.arguments
)


def _empty_in_order_of(like: torch.Tensor, last: int) -> torch.Tensor:
    """As empty_in_order_of in csrc/tensors.cpp: dense, heads and tokens in `like`'s order."""
    sizes = [*like.shape[:-1], last]
    if like.stride(-3) < like.stride(-2):
        sizes[-3], sizes[-2] = sizes[-2], sizes[-3]
        return like.new_empty(sizes).transpose(-3, -2)
    return like.new_empty(sizes)


def _require_one_device(q, **tensors) -> None:
    """A tensor without memory among others would bring the call here, and give uninitialised results."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.device != q.device:
            raise RuntimeError(
                f"invalid argument: {name}: device {tensor.device}, expected q's {q.device}"
            )


@library.register_fake("tessera::attention")
def _attention_fake(q, k, v, *rest, **named):
    others = dict(zip(_TENSORS, rest)) | {n: t for n, t in named.items() if n in _TENSORS}
    _require_one_device(q, k=k, v=v, **others)
    heads, rows = (1, 0) if q.dim() == 3 else (1, 2)
    sizes = [q.shape[heads], q.shape[rows]]
    if q.dim() == 4:
        sizes.insert(0, q.shape[0])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _empty_in_order_of(q, v.shape[-1]), q.new_empty(sizes, dtype=wide)


@library.register_fake("tessera::attention_backward")
def _attention_backward_fake(d_o, d_lse, o, lse, gradients, q, k, v, *rest, **named):
    arguments = [q, k, v, *rest]
    results = []
    for position, bit in GRADIENTS.items():
        of = arguments[position] if position < len(arguments) else None
        if of is None or not gradients & bit:
            results.append(q.new_empty([0]))
        elif position < 3:
            results.append(_empty_in_order_of(of, of.shape[-1]))
        else:
            results.append(of.new_empty(of.shape))
    return tuple(results)


class _Attention(torch.autograd.Function):
    """Attention with its gradients: `arguments` are the operator's, and the tensors before them
    those among them that have gradients, as autograd looks at each argument in turn. Arguments 0 to
    11 and 13, the seed, are tensors; 12 is block_mask_shape."""

    @staticmethod
    def forward(ctx, q, k, v, bias, sinks, arguments):
        arguments = (q, k, v, bias, *arguments[4:6], sinks, *arguments[7:])
        with torch._C._AutoDispatchBelowAutograd():
            o, lse = attention(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(o, lse, *arguments[:12], arguments[13])
        ctx.settings = arguments[12], *arguments[14:]
        return o, lse

    @staticmethod
    def backward(ctx, d_o, d_lse):
        o, lse, *tensors, seed = ctx.saved_tensors
        block_mask_shape, *rest = ctx.settings
        arguments = *tensors, block_mask_shape, seed, *rest
        wanted = sum(compress(_BITS, ctx.needs_input_grad))
        if d_o is None:
            d_o = torch.zeros_like(o)
        if torch.is_grad_enabled():  # create_graph=True, which the dispatcher must see
            results = attention_backward(d_o, d_lse, o, lse, wanted, *arguments)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                results = attention_backward(d_o, d_lse, o, lse, wanted, *arguments)
        gradients = [g if wanted & bit else None for bit, g in zip(_BITS, results)]
        return (*gradients, None)


def _refuse_tangents(arguments) -> None:
    """Forward-mode derivatives would be lost silently."""
    for tensor in arguments[:7]:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                "tessera.attention: no forward-mode derivatives, expected reverse mode (backward)"
            )


def _differentiable(arguments):
    """attention(*arguments), recorded for autograd if a tensor among them requires grad."""
    q, k, v, bias, _, alibi, sinks = arguments[:7]
    if torch.is_grad_enabled():
        if alibi is not None and alibi.requires_grad:
            raise ValueError("alibi: requires grad, but ALiBi slopes have no gradient: detach them")
        if (
            q.requires_grad
            or k.requires_grad
            or v.requires_grad
            or (bias is not None and bias.requires_grad)
            or (sinks is not None and sinks.requires_grad)
        ):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(
                    "tessera.attention: differentiated by torch.func, expected torch.autograd"
                )
            return _Attention.apply(q, k, v, bias, sinks, arguments)
    if forward_ad._current_level >= 0:
        _refuse_tangents(arguments)
    if arguments[_RARE:] == _DEFAULTS[_RARE:]:  # each argument that is given costs time
        arguments = arguments[:_RARE]
    with torch._C._AutoDispatchBelowAutograd():
        return attention(*arguments)


def _autograd_kernel(*arguments):
    # The dispatcher leaves arguments at the end out that have their default.
    return _differentiable(arguments + _DEFAULTS[len(arguments) :])


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError("tessera::attention: no second derivatives, expected create_graph=False")


library.register_autograd("tessera::attention_backward", _no_second_derivative)


def _autocast(device_type: str, q, k, v, bias, rest):
    """q, k and v in autocast's dtype; the bias as well, unless it is float32, which kernels take."""
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    if bias is not None and bias.dtype != torch.float32:
        bias = cast(bias)
    return cast(q), cast(k), cast(v), bias, *rest


def _autocast_kernel(device_type: str):
    def kernel(q, k, v, bias=None, *rest):
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST[device_type]):
            return attention(*_autocast(device_type, q, k, v, bias, rest))

    return kernel


def attend(arguments: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """attention(*arguments). Plain tensors outside function transforms go from here to the kernels
    for autocast and autograd, as the dispatcher's calls into Python cost more than all the rest."""
    q, k, v, bias = arguments[:4]
    plain = type(q) in _PLAIN and type(k) in _PLAIN and type(v) in _PLAIN
    if not plain or torch._C._are_functorch_transforms_active():
        return attention(*arguments)
    device_type = "cuda" if q.is_cuda else "cpu"
    if torch.is_autocast_enabled(device_type):
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST[device_type]):
            return _differentiable(_autocast(device_type, q, k, v, bias, arguments[4:]))
    return _differentiable(arguments)


_fragment = library.Library("tessera", "FRAGMENT")
_fragment.impl("attention", _autograd_kernel, "Autograd")
for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _fragment.impl("attention", _autocast_kernel(_device), _key)
