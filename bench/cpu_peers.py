#!/usr/bin/env python3
"""Times Tessera beside PyTorch's attention on a CPU, in one process and on the same tensors.

The peers are scaled_dot_product_attention's fused kernel (flash) and its unfused one (math). All
take turns, each with a pause before it: PyTorch's threads look for more work for a while after a
call, and would take CPU time from whoever is timed next. Times are medians, GFLOP/s count as the
FlashAttention papers do.

  bench/cpu_peers.py --library build/release/src/libtessera.so --dtype f32,bf16
"""

import argparse
import math
import os
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import peers
import tessera_c

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
MATH_LIMIT = 2 << 30  # bytes of scores in f32 beyond which the unfused computation is left out
FEWEST_SAMPLES = 3
PAUSE = 0.02  # seconds before a contender's turn
TURN = 0.02  # seconds of runs in a turn


class TorchPeer:
    """One backend of PyTorch's on one problem, its forward pass run once."""

    def __init__(self, backend, tensors, causal, backward):
        self._backend = BACKENDS[backend]
        self._causal = causal
        q, k, v, self._d_o = tensors
        self._inputs = [t.detach().requires_grad_(backward) for t in (q, k, v)]
        self.o = self._attend()

    def _attend(self):
        with sdpa_kernel([self._backend]):
            return torch.nn.functional.scaled_dot_product_attention(
                *self._inputs, is_causal=self._causal
            )

    def forward(self):
        with torch.no_grad():
            self._attend()

    def backward(self):
        torch.autograd.grad(self.o, self._inputs, self._d_o, retain_graph=True)


def in_turns(contenders, budget):
    """Seconds of each contender: the median of its runs."""
    samples = {name: [] for name in contenders}
    for work in contenders.values():
        work()

    def done(times):
        return len(times) >= FEWEST_SAMPLES and sum(times) >= budget

    while not all(done(times) for times in samples.values()):
        for name, work in contenders.items():
            if done(samples[name]):
                continue
            time.sleep(PAUSE)
            work()  # untimed: threads wake, caches fill
            begin = time.perf_counter()
            while time.perf_counter() - begin < TURN:
                start = time.perf_counter()
                work()
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def measure(cell, options):
    """Lines of one problem, one for each pass."""
    shape = (1, cell["heads"], cell["seq"], cell["head_dim"])
    dtype = peers.DTYPES[cell["dtype"]]
    tensors = [torch.randn(shape, dtype=dtype) for _ in range(4)]
    backward = "backward" in options.passes
    plan = tessera_c.Plan(
        *tensors[:3],
        tensors[3] if backward else None,
        cell["causal"],
        implementation=options.implementation,
        threads=options.threads,
    )
    plan.forward()
    scores = 4 * cell["heads"] * cell["seq"] ** 2
    made = {
        name: TorchPeer(name, tensors, cell["causal"], backward)
        for name in BACKENDS
        if name == "flash" or scores <= MATH_LIMIT
    }
    error = peers.relative_error(plan.o, made["flash"].o)
    lines = []
    for index, name in enumerate(("forward", "backward")):
        if name not in options.passes:
            continue
        contenders = {"tessera": getattr(plan, name)}
        contenders |= {peer: getattr(m, name) for peer, m in made.items()}
        seconds = in_turns(contenders, options.budget)
        work = tessera_c.flops(
            1, cell["heads"], cell["seq"], cell["seq"], cell["head_dim"], cell["causal"], index == 1
        )
        line = {
            "pass": name,
            "dtype": cell["dtype"],
            "H": cell["heads"],
            "S": cell["seq"],
            "D": cell["head_dim"],
            "causal": "yes" if cell["causal"] else "no",
            "row": plan.implementations()[index],
        }
        for contender in ("tessera", *BACKENDS):
            known = contender in seconds
            line[contender] = f"{work / seconds[contender] * 1e-9:.0f}" if known else "–"
        for peer in BACKENDS:
            ratio = seconds[peer] / seconds["tessera"] if peer in seconds else None
            line[f"vs {peer}"] = f"{ratio:.2f}" if ratio else "–"
        line["error"] = f"{error:.1e}"
        lines.append(line)
    return lines


def summary(lines, options):
    """Geometric mean and lowest of the ratios to each peer."""
    texts = []
    for name in options.passes:
        for peer in BACKENDS:
            title = f"vs {peer}"
            ratios = [float(x[title]) for x in lines if x["pass"] == name and x[title] != "–"]
            if ratios:
                mean = math.exp(statistics.mean(map(math.log, ratios)))
                texts.append(
                    f"{name} against {peer}: geometric mean {mean:.2f}, lowest {min(ratios):.2f}, "
                    f"of {len(ratios)} cells"
                )
    return texts


def parse_options():
    def texts(text):
        return text.split(",")

    def sizes(text):
        return [int(size) for size in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library", dest="shared_library", help="libtessera.so, instead of the package's own"
    )
    parser.add_argument("--dtype", type=texts, default=["f32", "bf16"])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=sizes, default=[64, 128])
    parser.add_argument("--seq", type=sizes, default=[512, 2048, 8192])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--passes", type=texts, default=["forward", "backward"])
    parser.add_argument("--implementation", default="", help="force this row of Tessera's table")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of each contender")
    return parser.parse_args()


def main():
    options = parse_options()
    tessera = tessera_c.load(options.shared_library)
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    print(f"tessera {tessera.version()}, torch {torch.__version__}, {options.threads} threads")
    lines = []
    for dtype in options.dtype:
        for head_dim in options.head_dim:
            for seq in options.seq:
                for causal in (False, True):
                    cell = dict(
                        dtype=dtype, heads=options.heads, head_dim=head_dim, seq=seq, causal=causal
                    )
                    for line in measure(cell, options):
                        print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
                        lines.append(line)
    print(peers.markdown_table(lines))
    print("\n".join(summary(lines, options)))


if __name__ == "__main__":
    main()
