#!/usr/bin/env python3
"""Times Tessera beside PyTorch's attention on a GPU, in one process and on the same tensors.

The peers are the backends of torch.nn.functional.scaled_dot_product_attention: flash
(FlashAttention-2), cudnn, efficient (xFormers' memory-efficient attention) and math (unfused), and flex, compiled FlexAttention; for block masks
flex alone, for packed sequences varlen, torch.nn.attention.varlen. All take turns; each run is timed by events after the L2
cache was written over, and while the device still waits, so that what the host needs for a launch
is not timed. Times are medians.

  bench/peers.py --library build/release/src/libtessera.so
  bench/peers.py --suite decode --dtype f16 --output bench/results
  bench/peers.py --suite sparse --head-dim 128
  bench/peers.py --suite varlen
  bench/peers.py --passes forward --head-dim 128 --precisions sage8,sage4
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import warnings

import torch
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

import tessera_c

TOKENS = 16384
WIDTH = 2048
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FLEX = "flex"
VARLEN = "varlen"
BLOCK = 128
PATTERNS = ("dense", "butterfly", "local_global", "random4", "random16")
MATH_LIMIT = 8 << 30  # bytes of scores in f32 beyond which the unfused computation is left out
FEWEST_SAMPLES = 5
MOST_SAMPLES = 100
RUNS_PER_TURN = 5
HEAD_START_CYCLES = 1_000_000  # about half a millisecond
GRADIENTS = ("d_q", "d_k", "d_v")


def suite_cells(options):
    """The problems of a suite: dictionaries of sizes."""
    if options.suite == "decode":
        return [
            dict(batch=8, heads=64, heads_kv=8, seq_q=1, seq_kv=seq, head_dim=128, causal=False)
            for seq in options.seq or [8192, 65536]
        ]
    if options.suite == "sparse":
        return [
            dict(
                batch=1,
                heads=WIDTH // head_dim,
                heads_kv=WIDTH // head_dim,
                seq_q=seq,
                seq_kv=seq,
                head_dim=head_dim,
                causal=False,
                pattern=pattern,
            )
            for head_dim in options.head_dim or [64, 128]
            for seq in options.seq or [16384]
            for pattern in PATTERNS
        ]
    if options.suite == "varlen":
        return [
            dict(
                batch=len(lengths),
                heads=WIDTH // head_dim,
                heads_kv=WIDTH // head_dim,
                seq_q=max(lengths),
                seq_kv=max(lengths),
                head_dim=head_dim,
                causal=causal,
                lengths=lengths,
            )
            for head_dim in options.head_dim or [64, 128]
            for causal in (False, True)
            for lengths in (packed_lengths(seq) for seq in options.seq or [1024, 4096])
        ]
    return [
        dict(
            batch=TOKENS // seq,
            heads=WIDTH // head_dim,
            heads_kv=WIDTH // head_dim,
            seq_q=seq,
            seq_kv=seq,
            head_dim=head_dim,
            causal=causal,
        )
        for head_dim in options.head_dim or [64, 128, 256]
        for causal in (False, True)
        for seq in options.seq or [512, 1024, 2048, 4096, 8192, 16384]
    ]


def packed_lengths(longest):
    """Lengths of sequences, drawn from 1 to `longest`, that fill TOKENS."""
    generator = torch.Generator().manual_seed(1)
    lengths = []
    while (room := TOKENS - sum(lengths)) > 0:
        drawn = torch.randint(1, longest + 1, (1,), generator=generator).item()
        lengths.append(min(drawn, room))
    return lengths


def pattern_blocks(pattern, seq):
    """The blocks of a pattern, [query blocks, key blocks]; None for all of them."""
    if pattern == "dense":
        return None
    i = torch.arange(-(-seq // BLOCK)).unsqueeze(1)
    j = i.t()
    if pattern == "butterfly":
        differ = i ^ j
        return (differ & (differ - 1)) == 0
    if pattern == "local_global":
        return ((i - j).abs() <= 3) | (i < 1) | (j < 1)
    draws = torch.rand(len(i), len(i), generator=torch.Generator().manual_seed(1))
    return (draws < 1 / int(pattern.removeprefix("random"))) | (i == j)


class Stopwatch:
    """Times work on the current stream."""

    def __init__(self):
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(2 * l2, 32 << 20), dtype=torch.uint8, device="cuda")

    def milliseconds(self, work, runs):
        """Of each of `runs` runs of `work`, L2-cold."""
        events = []
        for run in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HEAD_START_CYCLES)
            self._flush.fill_(run)
            begin.record()
            work()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]


def in_turns(contenders, stopwatch, budget):
    """Milliseconds of each contender, sampled a few runs at a time in turn."""
    samples = {name: [] for name in contenders}

    def done(times):
        enough = len(times) >= FEWEST_SAMPLES
        return enough and (sum(times) >= 1e3 * budget or len(times) >= MOST_SAMPLES)

    while not all(done(times) for times in samples.values()):
        for name, work in contenders.items():
            if not done(samples[name]):
                samples[name] += stopwatch.milliseconds(work, RUNS_PER_TURN)
    return samples


def ceilings(dtype, stopwatch):
    """What the device reaches at best: a matrix product, and a copy."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    product = stopwatch.milliseconds(lambda: torch.matmul(a, b), 10)
    copied = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(copied)
    copy = stopwatch.milliseconds(lambda: target.copy_(copied), 10)
    return dict(
        product_tflops=2 * size**3 / statistics.median(product) * 1e-9,
        copy_gbytes_per_s=2 * copied.numel() / statistics.median(copy) * 1e-6,
    )


def make_tensors(cell, dtype, layout):
    """q, k, v and d_o as [B, H, S, D], in memory as `layout` says; packed ones as [T, H, D]."""

    def make(heads, seq):
        if "lengths" in cell:
            shape = (sum(cell["lengths"]), heads, cell["head_dim"])
            return torch.randn(shape, device="cuda", dtype=dtype)
        if layout == "bhsd":
            return torch.randn(
                cell["batch"], heads, seq, cell["head_dim"], device="cuda", dtype=dtype
            )
        shape = (cell["batch"], seq, heads, cell["head_dim"])
        return torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2)

    q, d_o = (make(cell["heads"], cell["seq_q"]) for _ in range(2))
    k, v = (make(cell["heads_kv"], cell["seq_kv"]) for _ in range(2))
    return q, k, v, d_o


def scaled_dot_product(name, cell):
    """PyTorch's attention through one of its backends: a function of q, k and v."""

    def attend(q, k, v):
        with sdpa_kernel([BACKENDS[name]]):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=cell["causal"], enable_gqa=cell["heads"] != cell["heads_kv"]
            )

    return attend


def flexible(cell, blocks):
    """Compiled FlexAttention over full blocks: a function of q, k and v."""
    mask = None
    if cell["causal"]:
        mask = flex_attention.create_block_mask(
            lambda b, h, i, j: j <= i, None, None, cell["seq_q"], cell["seq_kv"], device="cuda"
        )
    if blocks is not None:
        listed = blocks.to("cuda", torch.int32)
        counts = listed.sum(dim=-1, dtype=torch.int32)[None, None]
        indices = torch.argsort(listed, dim=-1, descending=True, stable=True)
        indices = indices.to(torch.int32)[None, None].contiguous()
        mask = flex_attention.BlockMask.from_kv_blocks(
            torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, BLOCK_SIZE=BLOCK
        )
    compiled = torch.compile(flex_attention.flex_attention, dynamic=False)
    grouped = cell["heads"] != cell["heads_kv"]
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=grouped)


def starts_of(cell):
    """cu_seqlens of a packed problem; None of another."""
    if "lengths" not in cell:
        return None
    starts = torch.tensor([0, *cell["lengths"]], device="cuda").cumsum(0)
    return starts.to(torch.int32)


def packed(cell):
    """PyTorch's attention on packed sequences: a function of q, k and v."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = starts_of(cell), cell["seq_q"]
    window = (-1, 0) if cell["causal"] else (-1, -1)
    return lambda q, k, v: varlen_attn(
        q, k, v, starts, starts, longest, longest, window_size=window
    )


class Peer:
    """One backend of PyTorch's on one problem, its forward pass run once."""

    def __init__(self, name, cell, tensors, blocks, backward):
        if name == VARLEN:
            self._attention = packed(cell)
        elif name == FLEX:
            self._attention = flexible(cell, blocks)
        else:
            self._attention = scaled_dot_product(name, cell)
        q, k, v, self._d_o = tensors
        self._inputs = [t.detach().requires_grad_(backward) for t in (q, k, v)]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.o = self._attend()
        self.extra = {"forward": self._extra(before, [self.o])}
        if backward:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.gradients = self.backward()
            self.extra["backward"] = self._extra(before, self.gradients)

    @staticmethod
    def _extra(before, results):
        torch.cuda.synchronize()
        kept = sum(t.numel() * t.element_size() for t in results)
        return max(torch.cuda.max_memory_allocated() - before - kept, 0)

    def _attend(self):
        return self._attention(*self._inputs)

    def forward(self):
        with torch.no_grad():
            self._attend()

    def backward(self):
        return torch.autograd.grad(self.o, self._inputs, self._d_o, retain_graph=True)


def make_peers(names, cell, tensors, blocks, backward):
    """The backends that accept the problem, and why the others do not."""
    peers, missing = {}, {}
    warnings.filterwarnings("ignore", category=UserWarning)  # each backend that refuses says why
    scores = 4 * cell["batch"] * cell["heads"] * cell["seq_q"] * cell["seq_kv"]
    for name in names:
        if name == "math" and scores > MATH_LIMIT:
            missing[name] = f"scores of {scores >> 30} GiB"
            continue
        if blocks is not None and name != FLEX:
            missing[name] = "no block masks"
            continue
        if ("lengths" in cell) != (name == VARLEN):
            missing[name] = "for packed sequences alone" if name == VARLEN else "not packed"
            continue
        try:
            peers[name] = Peer(name, cell, tensors, blocks, backward)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            missing[name] = str(error).splitlines()[0]
    return peers, missing


def relative_error(got, expected):
    difference = (got.float() - expected.float()).abs().sum()
    return (difference / expected.float().abs().sum()).item()


def disagreement(plan, peers, backward):
    """The largest relative L1 difference of a result from the first peer's."""
    if not peers:
        return None
    peer = next(iter(peers.values()))
    errors = [relative_error(plan.o, peer.o)]
    if backward:
        for name, expected in zip(GRADIENTS, peer.gradients):
            errors.append(relative_error(getattr(plan, name), expected))
    return max(errors)


def work_of(cell, density, backward):
    """Operations of a problem, of listed blocks."""
    causal = cell["causal"]
    if "lengths" in cell:
        return sum(
            tessera_c.flops(1, cell["heads"], n, n, cell["head_dim"], causal, backward)
            for n in cell["lengths"]
        )
    sizes = (cell[name] for name in ("batch", "heads", "seq_q", "seq_kv", "head_dim"))
    return density * tessera_c.flops(*sizes, causal, backward)


def measure_cell(cell, options, tessera, stopwatch):
    """Records of one problem, one for each pass."""
    dtype = DTYPES[options.dtype]
    backward = "backward" in options.passes
    tensors = make_tensors(cell, dtype, options.layout)
    q, k, v, d_o = tensors
    blocks = pattern_blocks(cell.get("pattern", "dense"), cell["seq_q"])
    block_mask = None
    if blocks is not None:
        block_mask = tessera.BlockMask.from_blocks(
            blocks, cell["seq_q"], cell["seq_kv"], block_q=BLOCK, block_kv=BLOCK
        ).to("cuda")
    plan = tessera_c.Plan(
        q,
        k,
        v,
        d_o if backward else None,
        causal=cell["causal"],
        block_mask=block_mask,
        cu_seqlens=starts_of(cell),
        implementation=options.implementation,
    )
    plan.forward()
    if backward:
        plan.backward()
    # With quantising, and without an lse, like the peers without gradients.
    quantised = {
        precision: tessera_c.Plan(
            q,
            k,
            v,
            causal=cell["causal"],
            block_mask=block_mask,
            cu_seqlens=starts_of(cell),
            precision=precision,
            lse=False,
        )
        for precision in options.precisions
    }
    for made in quantised.values():
        made.forward()
    peers, missing = make_peers(options.backends, cell, tensors, blocks, backward)
    torch.cuda.synchronize()
    error = disagreement(plan, peers, backward)
    density = 1.0 if blocks is None else blocks.float().mean().item()
    records = []
    for index, name in enumerate(("forward", "backward")):
        if name not in options.passes:
            continue
        contenders = {"tessera": getattr(plan, name)}
        contenders |= {peer: getattr(made, name) for peer, made in peers.items()}
        if name == "forward":
            contenders |= {precision: made.forward for precision, made in quantised.items()}
        times = in_turns(contenders, stopwatch, options.budget)
        work = work_of(cell, density, name == "backward")
        extra = {peer: made.extra[name] for peer, made in peers.items()}
        extra["tessera"] = plan.workspace_bytes[index]
        extra |= {precision: made.workspace_bytes[0] for precision, made in quantised.items()}
        ms = {contender: statistics.median(t) for contender, t in times.items()}
        records.append(
            cell
            | dict(
                direction=name,
                density=density,
                dtype=options.dtype,
                implementation=plan.implementations()[index],
                ms=ms,
                tflops={contender: work / t * 1e-9 for contender, t in ms.items()},
                extra_bytes=extra,
                missing=missing,
                relative_error=error,
                io_bytes=sum(t.numel() * t.element_size() for t in (q, k, v, q)),
            )
        )
    return records


def ratio(record, peer):
    """How many times as fast as the peer Tessera is."""
    return record["ms"][peer] / record["ms"]["tessera"] if peer in record["ms"] else None


def columns(record, options, limits):
    """The table's line of a record: titles and texts."""
    heads = record["heads"]
    if heads != record["heads_kv"]:
        heads = f"{heads}/{record['heads_kv']}"
    seq = record["seq_q"]
    if seq != record["seq_kv"]:
        seq = f"{seq}/{record['seq_kv']}"
    line = {
        "pass": record["direction"],
        "B": record["batch"],
        "H": heads,
        "S": seq,
        "D": record["head_dim"],
        "causal": "yes" if record["causal"] else "no",
    }
    if "pattern" in record:
        line["blocks"] = f"{record['pattern']} {record['density']:.4g}"
    line |= {
        "row": record["implementation"],
        "tessera": f"{record['tflops']['tessera']:.1f}",
    }
    for peer in [*options.precisions, *options.backends]:
        line[peer] = f"{record['tflops'][peer]:.1f}" if peer in record["tflops"] else "–"
    for peer in options.backends:
        times = ratio(record, peer)
        line[f"vs {peer}"] = f"{times:.2f}" if times else "–"
    if options.suite == "decode":
        rate = record["io_bytes"] / record["ms"]["tessera"] * 1e-6
        line["GB/s"] = f"{rate:.0f}"
        line["of copy"] = f"{100 * rate / limits['copy_gbytes_per_s']:.0f} %"
    else:
        line["of product"] = f"{100 * record['tflops']['tessera'] / limits['product_tflops']:.0f} %"
    line["extra MiB"] = f"{record['extra_bytes']['tessera'] / (1 << 20):.1f}"
    return line


def markdown_table(lines):
    """Lines of equal columns as a Markdown table, aligned for reading as text, too."""
    titles = list(lines[0])
    rows = [titles] + [[str(line[title]) for title in titles] for line in lines]
    widths = [max(len(row[c]) for row in rows) for c in range(len(titles))]
    texts = ["| " + " | ".join(x.rjust(w) for x, w in zip(row, widths)) + " |" for row in rows]
    texts.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(texts)


def summary(records, options):
    """Geometric mean and worst of the ratios to each peer."""
    lines = []
    for name in options.passes:
        for peer in options.backends:
            ratios = [ratio(r, peer) for r in records if r["direction"] == name]
            ratios = [x for x in ratios if x is not None]
            if ratios:
                mean = math.exp(statistics.mean(map(math.log, ratios)))
                lines.append(
                    f"{name} against {peer}: geometric mean {mean:.3f}, lowest {min(ratios):.3f}, "
                    f"of {len(ratios)} cells"
                )
    return lines


def describe_machine(options, tessera):
    def output_of(*command):
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return run.stdout.strip()

    here = os.path.dirname(os.path.abspath(__file__))
    commit = options.commit or output_of("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return dict(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        chip=torch.cuda.get_device_name(0),
        driver=driver.splitlines()[0] if driver else "unknown",
        commit=commit or "unknown",
        tessera=tessera.version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
    )


def write_record(options, machine, limits, records, text):
    """FOLDER/DATE-CHIP-SUITE-DTYPE.json and .md."""
    os.makedirs(options.output, exist_ok=True)
    chip = machine["chip"].lower().replace("nvidia ", "").replace(" ", "-")
    names = [machine["date"][:10], chip, options.suite, options.dtype, options.implementation]
    names += options.precisions
    stem = os.path.join(options.output, "-".join(filter(None, names)))
    with open(stem + ".json", "w", encoding="utf-8") as file:
        json.dump(dict(machine=machine, ceilings=limits, records=records), file, indent=1)
        file.write("\n")
    with open(stem + ".md", "w", encoding="utf-8") as file:
        file.write(f"# {options.suite}, {options.dtype}, {machine['chip']}\n\n{text}\n")
    print(f"wrote {stem}.json and .md")


def parse_options(arguments):
    def names(known):
        def parse(text):
            given = text.split(",")
            for name in given:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name}, expected some of {','.join(known)}")
            return given

        return parse

    def sizes(text):
        return [int(size) for size in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library", dest="shared_library", help="libtessera.so, instead of the package's own"
    )
    parser.add_argument("--suite", default="peers", choices=["peers", "decode", "sparse", "varlen"])
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument(
        "--passes",
        type=names(["forward", "backward"]),
        help="default both; decode: forward",
    )
    parser.add_argument(
        "--backends",
        type=names([*BACKENDS, FLEX, VARLEN]),
        help=f"default {','.join(BACKENDS)},{FLEX}; sparse: {FLEX}; varlen: {VARLEN}",
    )
    parser.add_argument("--implementation", default="", help="force this row of Tessera's table")
    parser.add_argument(
        "--precisions",
        type=names(["sage8", "sage4"]),
        default=[],
        help="of Tessera's forward pass, to time beside its exact one",
    )
    parser.add_argument("--head-dim", type=sizes, help="instead of the suite's")
    parser.add_argument("--seq", type=sizes, help="instead of the suite's")
    parser.add_argument("--layout", default="bshd", choices=["bshd", "bhsd"], help="in memory")
    parser.add_argument("--budget", type=float, default=0.05, help="seconds of each contender")
    parser.add_argument("--output", help="folder for a record: JSON and a Markdown table")
    parser.add_argument("--commit", help="Tessera's, where the folder is no Git repository")
    options = parser.parse_args(arguments)
    if options.passes is None:
        options.passes = ["forward"] if options.suite == "decode" else ["forward", "backward"]
    if options.backends is None:
        alone = {"sparse": [FLEX], "varlen": [VARLEN], "decode": list(BACKENDS)}
        options.backends = alone.get(options.suite, [*BACKENDS, FLEX])
    return options


def main(arguments):
    options = parse_options(arguments)
    tessera = tessera_c.load(options.shared_library)
    machine = describe_machine(options, tessera)
    heading = ", ".join(f"{key} {value}" for key, value in machine.items())
    print(heading)
    torch.manual_seed(1)
    records = []
    wrong = []
    with torch.cuda.stream(torch.cuda.Stream()):
        stopwatch = Stopwatch()
        limits = ceilings(DTYPES[options.dtype], stopwatch)
        for cell in suite_cells(options):
            torch.cuda.empty_cache()
            try:
                measured = measure_cell(cell, options, tessera, stopwatch)
            except (ValueError, NotImplementedError) as error:
                print(f"left out: {cell}: {error}")
                continue
            for record in measured:
                line = columns(record, options, limits)
                print("  ".join(f"{title} {text}" for title, text in line.items()), flush=True)
            error = measured[0]["relative_error"]
            if error is not None and not error < 0.02:
                wrong.append(f"{cell}: differs from the peer by {error:.3g} (relative L1)")
            records += measured
    if not records:
        return 1
    ceiling = (
        f"Ceilings: {options.dtype} product of 8192³ {limits['product_tflops']:.0f} TFLOP/s, copy "
        f"{limits['copy_gbytes_per_s']:.0f} GB/s read and written."
    )
    table = markdown_table([columns(record, options, limits) for record in records])
    notes = "\n".join(f"* {line}" for line in summary(records, options) + wrong)
    text = (
        f"{heading}\n\n{ceiling} TFLOP/s by the FlashAttention papers' count, of listed blocks; "
        f"`vs`: how many times as fast as the peer.\n\n{table}\n\n{notes}"
    )
    print("\n" + text)
    if options.output:
        write_record(options, machine, limits, records, text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
