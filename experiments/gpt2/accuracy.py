#!/usr/bin/env python3
"""Errors of attentions, forward and backward, on what a GPT-2 in training feeds them.

  experiments/gpt2/accuracy.py --text prose.txt --steps 0,60 --layers 0,6,11

Trains with `sdpa` up to each of --steps, takes q, k, v and the gradient of o of each of --layers
there, in bf16, and computes o, dq, dk and dv of these with every attention and in float64. Prints
relative errors, |x − exact| / |exact|, and after each the factor, less 1, by which x is exact's
multiple on average: a bias.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

import data
import model as gpt2
import tessera

NAMES = ("o", "dq", "dk", "dv")
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # q, k, v, d_o


def standard(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As `eager` has it under autocast: scores in the tensors' dtype, softmax in float32 at least."""
    scores = q @ k.mT * q.shape[-1] ** -0.5
    rows, keys = scores.shape[-2:]
    hidden = torch.ones(rows, keys, device=q.device, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(q.dtype) @ v


def through(backend: SDPBackend) -> Callable:
    def attend(q, k, v):
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend


ATTENTIONS = {
    "eager": standard,
    "cudnn": through(SDPBackend.CUDNN_ATTENTION),
    "flash": through(SDPBackend.FLASH_ATTENTION),
    "tessera": lambda q, k, v: tessera.attention(q, k, v, causal=True),
}


def passes(attend: Callable, inputs: Inputs) -> list[torch.Tensor]:
    """o and the gradients of q, k and v."""
    *tensors, d_o = inputs
    tensors = [t.detach().requires_grad_() for t in tensors]
    o = attend(*tensors)
    return [o.detach(), *torch.autograd.grad(o, tensors, d_o)]


def errors(inputs: Inputs, names: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each attention, for each of NAMES: the relative error and the bias. Those that PyTorch
    does not have here are absent."""
    exact = passes(standard, tuple(t.double() for t in inputs))
    found = {}
    for name in names:
        try:
            got = passes(ATTENTIONS[name], inputs)
        except RuntimeError as error:
            if name not in ("cudnn", "flash"):
                raise
            print(f"{name}: {str(error).splitlines()[0]}")
            continue
        found[name] = {
            tensor: (
                ((x.double() - e).norm() / e.norm()).item(),
                ((x.double() * e).sum() / (e * e).sum() - 1).item(),
            )
            for tensor, x, e in zip(NAMES, got, exact)
        }
    return found


class Recorder:
    """sdpa that keeps each layer's q, k, v and gradient of o."""

    def __init__(self) -> None:
        self.layers: dict[int, list[torch.Tensor]] = {}
        AttentionInterface.register("recorded", self)

    def __call__(self, module, q, k, v, mask, **others):
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        kept = self.layers[module.layer_idx] = [q.detach(), k.detach(), v.detach()]
        o.register_hook(lambda d_o: kept.append(d_o.detach()))
        return o.transpose(1, 2), None


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument

    def numbers(text):
        return [int(number) for number in text.split(",")]

    add("--text", required=True)
    add("--size", default="small", choices=gpt2.SIZES)
    add("--context", type=int, default=512)
    add("--batch", type=int, default=4)
    add("--steps", type=numbers, default=[0, 60])
    add("--layers", type=numbers, default=[0, 6, 11])
    add("--attention", default=list(ATTENTIONS), type=lambda text: text.split(","))
    add("--rate", type=float, default=6e-4, help="after a linear warm-up of 50 steps")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    device = torch.device(options.device)
    text = data.Text(options.text)
    config = gpt2.configuration(options.size, text.vocabulary, options.context)
    recorder = Recorder()
    model = gpt2.make_model(config, "recorded", "autocast", device, options.seed)
    optimizer = gpt2.make_optimizer(model, options.rate)
    for step in range(max(options.steps) + 1):
        batch = text.batch("train", step, options.batch, options.context, options.seed)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 50)
        optimizer.zero_grad(set_to_none=True)
        gpt2.loss_of(model, batch.to(device), "autocast").backward()
        if step in options.steps:
            for layer in options.layers:
                found = errors(tuple(recorder.layers[layer]), options.attention)
                for name, of in found.items():
                    line = " ".join(f"{t} {error:.2e} ({bias:+.0e})" for t, (error, bias) in of.items())
                    print(f"step {step} layer {layer} {name:8} {line}", flush=True)
        optimizer.step()


if __name__ == "__main__":
    main()
