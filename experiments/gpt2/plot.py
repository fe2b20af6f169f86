#!/usr/bin/env python3
"""Draws what train.py and benchmark.py wrote.

  experiments/gpt2/plot.py loss runs/eager runs/sdpa runs/tessera --output loss.png
  experiments/gpt2/plot.py context speed.json --output context.png

`loss` also prints how far apart the curves are: the largest difference, over all steps, between the
averages of two runs over --window logged steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

import log  # noqa: E402

COLOURS = {
    "eager": "tab:gray",
    "sdpa": "tab:orange",
    "sdpa_whole": "tab:red",
    "tessera": "tab:blue",
    "tessera_sparse": "tab:green",
    "none": "lightgray",
}


def smoothed(values: list[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start."""
    return [
        sum(values[max(0, n + 1 - window) : n + 1]) / min(window, n + 1) for n in range(len(values))
    ]


def draw_losses(runs: list[str], window: int, output: str) -> dict[tuple[str, str], float]:
    """Loss against step. Gives the largest differences between smoothed curves."""
    figure, axes = plt.subplots(figsize=(6, 4))
    curves = {}
    for run in runs:
        rows = log.read_csv(Path(run) / "log.csv")
        name = Path(run).name
        curves[name] = smoothed([row["loss"] for row in rows], window)
        steps = [row["step"] for row in rows]
        axes.plot(steps, curves[name], label=name, color=COLOURS.get(name), linewidth=1)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=130, bbox_inches="tight")
    return {
        (a, b): max(abs(x - y) for x, y in zip(curves[a], curves[b]))
        for a, b in itertools.combinations(curves, 2)
    }


def draw_contexts(path: str, size: str, output: str) -> None:
    """Tokens per second and peak memory against context length."""
    records = [r for r in json.loads(Path(path).read_text())["records"] if r["size"] == size]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4))
    kinds = sorted({(r["attention"], r["compiled"]) for r in records})
    for attention, compiled in kinds:
        rows = sorted(
            (r for r in records if (r["attention"], r["compiled"]) == (attention, compiled)),
            key=lambda r: r["context"],
        )
        rows = [r for r in rows if "missing" not in r]
        style = dict(
            label=attention + (", compiled" if compiled else ""),
            color=COLOURS.get(attention),
            linestyle="-" if compiled else "--",
            marker="o",
            markersize=4,
        )
        contexts = [r["context"] for r in rows]
        speed.plot(contexts, [r["tokens_per_second"] / 1000 for r in rows], **style)
        if all(r["peak_bytes"] is not None for r in rows):
            peaks = [r["peak_bytes"] / 2**30 for r in rows]
            memory.plot(contexts, peaks, **style)
    speed.set(xlabel="context", ylabel="thousand tokens/s", xscale="log")
    memory.set(xlabel="context", ylabel="peak memory, GiB", xscale="log")
    for axes in (speed, memory):
        ticks = sorted({r["context"] for r in records})
        axes.set_xticks(ticks, [f"{t // 1024}k" if t >= 1024 else str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    speed.legend()
    figure.savefig(output, dpi=130, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    loss = kinds.add_parser("loss")
    loss.add_argument("runs", nargs="+", help="folders of train.py")
    loss.add_argument("--window", type=int, default=10)
    context = kinds.add_parser("context")
    context.add_argument("file", help="of benchmark.py")
    context.add_argument("--size", default="small")
    for one in (loss, context):
        one.add_argument("--output", required=True, help="an image file")
    options = parser.parse_args(arguments)
    if options.kind == "context":
        draw_contexts(options.file, options.size, options.output)
        return
    differences = draw_losses(options.runs, options.window, options.output)
    for (a, b), difference in differences.items():
        print(f"{a} and {b}: {difference:.4f}")


if __name__ == "__main__":
    main()
