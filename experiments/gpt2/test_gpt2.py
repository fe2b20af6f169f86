"""The GPT-2 experiment on the CPU, with a model that is done in seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import accuracy  # noqa: E402
import benchmark  # noqa: E402
import data  # noqa: E402
import log  # noqa: E402
import model as gpt2  # noqa: E402
import train  # noqa: E402

TEXT = str(Path(__file__).with_name("README.md"))
TINY = "--size tiny --context 48 --precision f32 --device cpu --warmup 2 --rate 3e-3 --schedule 6"
TINY = [*TINY.split(), "--text", TEXT, "--log-every", "1", "--validation-batches", "1"]


def run(folder, *options):
    train.main([*TINY, "--output", str(folder), *options])
    return [row["loss"] for row in log.read_csv(folder / "log.csv")]


def weights(folder):
    return torch.load(folder / train.CHECKPOINT, weights_only=True)["model"]


def test_same_losses_as_standard_attention(tmp_path):
    ours, eager = (
        run(tmp_path / name, "--batch", "2", "--steps", "6", "--attention", name)
        for name in ("tessera", "eager")
    )
    assert len(ours) == 6 and ours[-1] < ours[0] - 0.3
    torch.testing.assert_close(ours, eager, atol=1e-4, rtol=0)


def test_resumed_run_ends_with_the_same_bits(tmp_path):
    options = ["--batch", "2", "--dropout", "0.1", "--deterministic"]
    whole = run(tmp_path / "whole", *options, "--steps", "4")
    run(tmp_path / "parts", *options, "--steps", "2")
    parts = run(tmp_path / "parts", *options, "--steps", "4", "--resume")
    assert parts == whole
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "parts")[name], value), name
    with pytest.raises(ValueError, match="batch: 3, expected 2"):
        run(tmp_path / "parts", "--batch", "3", "--resume")


def test_two_processes_train_as_one(tmp_path):
    one = run(tmp_path / "one", "--batch", "2", "--steps", "2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", train.__file__, *TINY]
    command += ["--batch", "1", "--steps", "2", "--output", str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = [row["loss"] for row in log.read_csv(tmp_path / "two" / "log.csv")]
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


def test_sparse_attention_and_quantised_evaluation(tmp_path):
    options = ["--batch", "1", "--steps", "1", "--attention", "tessera_sparse"]
    run(tmp_path, *options, "--evaluate", "tessera,tessera_sage8", "--precision", "bf16")
    record = json.loads((tmp_path / "run.json").read_text())
    losses = record["validation_loss"]
    assert record["steps"] == 1
    assert abs(losses["tessera_sage8"] - losses["tessera"]) < 0.02


def test_compiled_training(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compile_(m, backend="aot_eager"))
    torch.compiler.reset()
    options = ["--batch", "2", "--steps", "2"]
    compiled = run(tmp_path / "compiled", *options, "--compile")
    torch.testing.assert_close(compiled, run(tmp_path / "not", *options), atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["tessera", "tessera_sparse"])
def test_compiled_models_have_no_mask(attention):
    masks = []

    def note_masks(graph, inputs):
        nodes = [n for n in graph.graph.nodes if n.target is torch.ops.tessera.attention.default]
        masks.extend(node.args[4] for node in nodes)
        return graph.forward

    device = torch.device("cpu")
    gpt2.register_sparse(48, device, "local_global", block=16)
    model = gpt2.make_model(gpt2.configuration("tiny", 97, 48), attention, "f32", device, seed=0)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=note_masks, dynamic=False)
    tokens = torch.randint(97, (2, 48))
    torch.testing.assert_close(
        gpt2.loss_of(compiled, tokens, "f32"), gpt2.loss_of(model, tokens, "f32")
    )
    assert masks == [None, None]


@pytest.mark.parametrize("part", ["model", "block", "attention"])
def test_benchmark(tmp_path, part):
    path = tmp_path / "speed.json"
    options = ["--part", part, "--sizes", "tiny", "--contexts", "32", "--tokens", "64"]
    options += ["--vocabulary", "97", "--attention", "eager,sdpa,tessera,none"]
    options += ["--precision", "f32", "--turns", "2", "--steps", "1", "--device", "cpu"]
    records = benchmark.main([*options, "--output", str(path)])
    assert [r["attention"] for r in records] == ["eager", "sdpa", "tessera", "none"]
    assert all(r["batch"] == 2 and r["tokens_per_second"] > 0 for r in records)
    assert json.loads(path.read_text())["records"] == records


def test_sdpa_kernel(tmp_path):
    run(tmp_path / "a", "--steps", "2", "--attention", "sdpa", "--sdpa-kernel", "math")
    options = json.loads((tmp_path / "a" / "run.json").read_text())["options"]
    assert options["sdpa_kernel"] == "math"


def test_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    import plot

    folders = []
    for attention, seed in (("eager", 0), ("tessera", 0), ("sdpa", 1), ("tessera", 1)):
        folder = tmp_path / f"{attention}-{seed}"
        run(folder, "--batch", "1", "--steps", "3", "--attention", attention, "--seed", str(seed))
        folders.append(str(folder))
    run(tmp_path / "tessera-1", "--batch", "1", "--steps", "5", "--seed", "1", "--resume")
    picture = tmp_path / "loss.png"
    plot.main(["loss", *folders, "--output", str(picture)])
    assert picture.stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0].startswith("eager and tessera: 1 pairs, rms 0.0000, mean")
    assert lines[1].startswith("sdpa and tessera: 1 pairs, rms 0.0000, mean")
    for name, loss in (("eager", 3.0), ("eager", 3.2), ("sdpa", 3.1), ("tessera", 3.15)):
        folder = tmp_path / f"spread-{loss}" / name
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text(f"step,loss\n0,{loss}\n1,{loss}\n")
    plot.main(["loss", *map(str, tmp_path.glob("spread-*/*")), "--output", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert "tessera, seed 0: 0.0500 from the standard runs, among them at 100% of the steps" in lines
    assert "eager, seed 0: 0.1500 from the standard runs, among them at 0% of the steps" in lines
    rows = [
        dict(size="small", context=c, attention="tessera", compiled=True, tokens_per_second=1e5,
             peak_bytes=c << 20)
        for c in (1024, 4096)
    ]  # fmt: skip
    log.write_json(tmp_path / "speed.json", dict(records=rows))
    plot.main(["context", str(tmp_path / "speed.json"), "--output", str(picture)])
    assert picture.stat().st_size > 1000


def test_accuracy(capsys):
    options = ["--text", TEXT, "--size", "tiny", "--context", "48", "--batch", "1", "--steps", "0,1"]
    options += ["--layers", "1", "--attention", "eager,tessera", "--device", "cpu"]
    accuracy.main(options)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] + line[4] for line in lines] == ["0eager", "0tessera", "1eager", "1tessera"]
    for line in lines:
        assert all(1e-5 < float(line[at]) < 0.1 for at in (6, 9, 12, 15)), line


def test_text_as_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(("[UNK]", "one", "two", "three"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("one two three four " * 500)
    text = data.Text(str(tmp_path / "text.txt"), str(tmp_path / "tokenizer.json"))
    assert text.vocabulary == 4
    batch = text.batch("train", 0, 2, 8, seed=1)
    assert torch.equal(batch.diff(dim=1).remainder(4), torch.ones(2, 7, dtype=torch.long))


def test_text(tmp_path):
    import lzma

    path = tmp_path / "text.xz"
    path.write_bytes(lzma.compress(bytes(range(200)) * 5))
    text = data.Text(str(path))
    whole = text.batch("train", 3, 4, 10, seed=1)
    shares = [text.batch("train", 3, 2, 10, seed=1, rank=rank, ranks=2) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), whole)
    assert torch.equal(whole.diff(dim=1).remainder(200), torch.ones(4, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="50 validation tokens, expected more than the context"):
        text.batch("validation", 0, 1, 50, seed=1)
