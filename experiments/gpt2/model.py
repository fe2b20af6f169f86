"""GPT-2 as transformers has it, from a configuration with random weights, on a chosen attention."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import tessera
from tessera.huggingface import attention_forward

SIZES = {  # layers, heads, width
    "tiny": (2, 2, 64),
    "mini": (6, 6, 384),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
}
SPARSE = "tessera_sparse"
# Batches here are whole sequences without padding. Under torch.compile transformers makes a mask of
# the scores' size all the same, in case position_ids say that sequences are packed; for a name that
# has no mask function it makes none. `sdpa` is as transformers has it, `sdpa_whole` without the mask.
WHOLE = "tessera_whole"
AttentionInterface.register(WHOLE, attention_forward)
AttentionInterface.register("sdpa_whole", sdpa_attention_forward)
ATTENTIONS = ("eager", "sdpa", "sdpa_whole", "tessera", SPARSE)
# What a step costs without attention: o = v. For benchmarks: no attention is faster than that.
NONE = "none"
AttentionInterface.register(NONE, lambda module, q, k, v, mask, **others: (v.transpose(1, 2), None))
EVALUATED = (*ATTENTIONS, "tessera_sage8", "tessera_sage4")
PATTERNS = {  # key blocks that a query block visits, of those that causality leaves
    "butterfly": tessera.BlockMask.butterfly,
    "local_global": partial(tessera.BlockMask.local_global, local=2, global_=1),
    "strided": partial(tessera.BlockMask.strided, local=4, stride=8),
}
PRECISIONS = ("f32", "autocast", "bf16")


def configuration(size: str, vocabulary: int, context: int, dropout: float = 0.0) -> GPT2Config:
    layers, heads, width = SIZES[size]
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def register_sparse(context: int, device: torch.device, pattern: str, block: int = 128) -> None:
    """Makes SPARSE causal attention over a pattern of blocks, for sequences of `context` tokens."""
    mask = PATTERNS[pattern](context, context, block_q=block, block_kv=block).to(device)
    AttentionInterface.register(SPARSE, partial(attention_forward, block_mask=mask))


def set_attention(model: GPT2LMHeadModel, attention: str) -> None:
    """One of EVALUATED."""
    model.set_attn_implementation(WHOLE if attention == "tessera" else attention)


def make_model(
    config: GPT2Config, attention: str, precision: str, device: torch.device, seed: int
) -> GPT2LMHeadModel:
    """A model in training mode. The same seed gives the same weights whatever the attention."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers 5 does not find it by the class's name
    set_attention(model, attention)
    return model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).train()


def make_optimizer(
    model: torch.nn.Module, rate: float, weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """Fused AdamW, which decays matrices and embeddings alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        dict(params=[p for p in parameters if p.dim() >= 2], weight_decay=weight_decay),
        dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def loss_of(model: torch.nn.Module, tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """Mean cross-entropy of each token of [B, S] but the first, given those before it."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "autocast"):
        return model(input_ids=tokens, labels=tokens, use_cache=False).loss
