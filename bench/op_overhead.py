#!/usr/bin/env python3
"""What a call costs the host on a small problem: the C interface, the operator, the Python function.

  PYTHONPATH=build/release/python bench/op_overhead.py
  bench/op_overhead.py --device cpu --seq 8

Microseconds a call, calls enqueued one after another, the contenders in turns, medians; `graph` is a
replay of the calls out of a CUDA graph. The C interface is called through ctypes, which costs about
a microsecond itself.
"""

import argparse
import statistics
import time

import torch

import tessera
import tessera_c

CALLS = 200
TURNS = 15


def microseconds(work, device):
    """Of one call, over CALLS calls in a row."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / CALLS * 1e6


def graph_of(work):
    """A function that replays CALLS calls of work."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work()
    return graph.replay


def contenders(options):
    """Names and functions of no arguments; those with `grad` record a graph for autograd."""
    shape = 1, options.heads, options.seq, 64
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    q, k, v, d_o = (torch.randn(shape, device=options.device, dtype=dtype) for _ in range(4))
    tracked = [t.clone().requires_grad_() for t in (q, k, v)]
    plan = tessera_c.Plan(q, k, v, d_o)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    o = tessera.attention(*tracked)
    o_sdpa = sdpa(*tracked)
    made = {
        "C interface": plan.forward,
        "torch.ops.tessera.attention": lambda: torch.ops.tessera.attention.default(q, k, v),
        "tessera.attention": lambda: tessera.attention(q, k, v),
        "sdpa": lambda: sdpa(q, k, v),
        "tessera.attention, grad": lambda: tessera.attention(*tracked),
        "sdpa, grad": lambda: sdpa(*tracked),
        "C interface, backward": plan.backward,
        "tessera.attention, backward": lambda: torch.autograd.grad(
            o, tracked, d_o, retain_graph=True
        ),
        "sdpa, backward": lambda: torch.autograd.grad(o_sdpa, tracked, d_o, retain_graph=True),
    }
    return made


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--heads", type=int, default=1)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    works = contenders(options)
    samples = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            taken = microseconds(work, options.device)
            if turn > 0:
                samples[name].append(taken)
    print(f"{tessera.devices()[-1]}, torch {torch.__version__}, seq {options.seq}")
    for name, taken in samples.items():
        print(f"{name:32} {statistics.median(taken):7.1f} us, fastest {min(taken):7.1f}")
    if options.device != "cuda":
        return
    for name in ("C interface", "tessera.attention", "sdpa"):
        replay = graph_of(works[name])
        taken = []
        for turn in range(TURNS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / CALLS * 1e3)
        print(f"{name + ', graph':32} {statistics.median(taken):7.2f} us")


if __name__ == "__main__":
    main()
