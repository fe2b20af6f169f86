"""Models of transformers with random weights: Tessera's logits and gradients against eager's."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")
import tessera.huggingface  # noqa: E402, F401

SMALL = dict(vocab_size=97)


def gpt2():
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=64, **SMALL)
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=64,
        **SMALL,
    )
    return transformers.BertForMaskedLM(config)


def llama():
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
        intermediate_size=128,
        max_position_embeddings=64,
        **SMALL,
    )
    return transformers.LlamaForCausalLM(config)


def pair(make, device):
    """The same model with eager and with Tessera's attention."""
    eager = make().to(device).eval()
    ours = copy.deepcopy(eager)
    eager.set_attn_implementation("eager")
    ours.set_attn_implementation("tessera")
    return eager, ours


def batch(device, padding):
    tokens = torch.randint(1, 97, (3, 24), device=device)
    mask = torch.ones_like(tokens)
    if padding == "right":
        mask[1, 15:] = 0
    elif padding == "left":
        mask[1, :9] = 0
    return dict(input_ids=tokens, attention_mask=mask)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("make", [gpt2, bert, llama], ids=lambda make: make.__name__)
def test_logits_and_gradients(device, make, padding):
    eager, ours = pair(make, device)
    inputs = batch(device, padding)
    used = inputs["attention_mask"].bool()
    results = []
    for model in (eager, ours):
        logits = model(**inputs).logits
        logits[used].square().mean().backward()
        results.append((logits[used], [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
    for got, expected in zip(results[1][1], results[0][1]):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [gpt2, bert, llama], ids=lambda make: make.__name__)
def test_logits_and_gradients_of_narrow_models(device, make, dtype):
    """No farther from the model in float64 than twice what eager's are."""
    eager, ours = (model.to(dtype) for model in pair(make, device))
    exact = copy.deepcopy(eager).double()
    inputs = batch(device, "right")
    used = inputs["attention_mask"].bool()
    results = []
    for model in (exact, eager, ours):
        logits = model(**inputs).logits[used]
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    largest = max(expected.abs().max().item() for expected in results[0])
    for expected, by_eager, got in zip(*results):
        scale = expected.abs().max().item()
        if scale < 1e-12 * largest:  # the bias of keys: what comes of it is rounding alone
            continue
        errors = [(t.double() - expected).abs().max().item() for t in (by_eager, got)]
        assert errors[1] <= 2 * errors[0] + torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
def test_generate_with_a_static_cache(device, make):
    eager, ours = pair(make, device)
    inputs = batch(device, "left")
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, disable_compile=True)
    expected = eager.generate(**inputs, **options)
    assert torch.equal(ours.generate(**inputs, **options, cache_implementation="static"), expected)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
def test_generate(device, make, padding):
    eager, ours = pair(make, device)
    inputs = batch(device, padding)
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = eager.generate(**inputs, **options)
    assert torch.equal(ours.generate(**inputs, **options), expected)
    assert torch.equal(ours.generate(**inputs, **options, use_cache=False), expected)


def test_compiled_encoder_makes_no_mask(device):
    """Without padding, a compiled BERT has no mask of the scores' size."""
    eager, ours = pair(bert, device)
    tokens = batch(device, "none")["input_ids"]
    masks = []

    def note_masks(graph, inputs):
        for node in graph.graph.nodes:
            if node.target is torch.ops.tessera.attention.default:
                masks.append(node.args[4])
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(ours, backend=note_masks, dynamic=False)
    with torch.no_grad():
        got, expected = (model(tokens).logits for model in (compiled, eager))
    assert masks == [None, None]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_quantised_by_name():
    """tessera_sage8 through a model on the CPU, where the scalar model of the scheme computes it."""
    torch.manual_seed(0)
    eager, ours = pair(gpt2, "cpu")
    ours.set_attn_implementation("tessera_sage8")
    inputs = batch("cpu", "left")
    used = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, got = (model(**inputs).logits[used] for model in (eager, ours))
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)
