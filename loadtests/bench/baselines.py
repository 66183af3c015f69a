"""What the embedded engine is measured against: Hugging Face, and the floor of any engine.

All take token ids and draw from the model's whole distribution at temperature 1; all make exactly
``branches * new_tokens`` tokens and say how many they made. Letters: B branches, T tokens,
H heads, D head width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from engines.embedded.compute import compute_thread

P = ParamSpec("P")
R = TypeVar("R")


def _beside_ours(function: Callable[P, R]) -> Callable[P, R]:
    """Run on the engine's compute thread: a second OpenMP team would slow both contenders."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return compute_thread("cpu").call(lambda: function(*args, **kwargs))

    return run


@dataclass(frozen=True)
class Load:
    """One measurement's work: `branches` answers of `new_tokens` each to one prompt."""

    branches: int
    new_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Timing:
    """Tokens made, and the seconds it took."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@_beside_ours
def load_peer(directory: Path) -> Any:
    """The same weights as a Hugging Face model, float32, its default attention, without eos.

    Eos is left out of its generation config, so that it makes as many tokens as it is asked for.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.requires_grad_(False)
    model.generation_config.eos_token_id = None
    return model


@_beside_ours
@torch.inference_mode()
def generate(model: Any, prompt: tuple[int, ...], load: Load, seed: int) -> Timing:
    """``generate(num_return_sequences=B)``, without truncation and without an eos to look for."""
    ids = torch.tensor([prompt])  # (1, T)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=load.branches,
        max_new_tokens=load.new_tokens,
        pad_token_id=0,
        use_cache=True,
    )
    seconds = time.perf_counter() - begin
    return Timing((out.shape[1] - len(prompt)) * out.shape[0], seconds)


@_beside_ours
@torch.inference_mode()
def cached_loop(model: Any, prompt: tuple[int, ...], load: Load, seed: int) -> Timing:
    """A hand-written loop: the prompt is computed once, its cache repeated for every branch."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    cache = DynamicCache(config=model.config)
    out = model(torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(load.branches)
    logits = out.logits[:, -1].expand(load.branches, -1)  # (B, vocab)
    drawn = [torch.multinomial(logits.softmax(-1), 1)]  # (B, 1) each
    while len(drawn) < load.new_tokens:
        out = model(drawn[-1], past_key_values=cache, use_cache=True)
        drawn.append(torch.multinomial(out.logits[:, -1].softmax(-1), 1))
    seconds = time.perf_counter() - begin
    return Timing(torch.cat(drawn, 1).numel(), seconds)


@_beside_ours
@torch.inference_mode()
def greedy(model: Any, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """The greedy answer of exactly so many tokens, whatever eos ids are among them."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@_beside_ours
@torch.inference_mode()
def logps_of(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    """Log-probability of each answer token in one dense pass, nats."""
    logits = model(torch.tensor([prompt + answer])).logits[0]  # (T, vocab)
    rows = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, answer, strict=True)]


class Floor:
    """The matrix products no engine can leave out: linear layers, and attention to the prompt.

    One step of B branches: each weight matrix is read once, and so are the keys and values of the
    shared prompt. No norms, no rotary embedding, no private keys, no sampling: a lower bound.
    """

    def __init__(self, model: Any, load: Load) -> None:
        config = model.config
        self._load = load
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        width = config.hidden_size
        self._head_dim = getattr(config, "head_dim", None) or width // self._heads
        self._layers = [_weights(layer) for layer in model.model.layers]
        self._unembed = model.lm_head.weight  # (vocab, C)
        shape = (self._kv_heads, load.prompt_tokens, self._head_dim)
        self._cache = [(torch.randn(shape), torch.randn(shape)) for _ in self._layers]
        self._rows = torch.randn(load.branches, width)

    @_beside_ours
    @torch.inference_mode()
    def seconds_per_step(self, steps: int) -> float:
        """Mean over so many steps."""
        self._step()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step()
        return (time.perf_counter() - begin) / steps

    def _step(self) -> Tensor:
        rows, heads, width = self._rows, self._heads, self._head_dim
        count, shared = len(rows), heads // self._kv_heads
        for (qkv, out, gate_up, down), (keys, values) in zip(
            self._layers, self._cache, strict=True
        ):
            q = (rows @ qkv)[:, : heads * width]
            # (B, H, D) to (kv heads, queries under one kv head, D)
            q = q.view(count, self._kv_heads, shared, width).transpose(0, 1)
            q = q.reshape(self._kv_heads, count * shared, width)
            mixed = (q @ keys.transpose(1, 2) * width**-0.5).softmax(-1) @ values
            mixed = mixed.view(self._kv_heads, count, shared, width).transpose(0, 1)
            attended = mixed.reshape(count, heads * width) @ out
            gate, up = (attended @ gate_up).chunk(2, -1)
            rows = torch.nn.functional.silu(gate) * up @ down
        logits: Tensor = rows @ self._unembed.T
        return logits


def _weights(layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fused and transposed weights of one layer: (in, out) each."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    pieces = (qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight)
    return tuple(piece.detach().T.contiguous() for piece in pieces)  # type: ignore[return-value]
