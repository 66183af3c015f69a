"""Samples many completions at once, for watching the training and for the reward model's data.

A small batched sampler whose samples of one prompt share that prompt's keys and values, which are
read once a step for all of them. It serves training only; people are served by the embedded
engine, which shares more and does so for requests that come and go.

Letters: P prompts, S samples of each, H heads, T tokens, D head_dim, C hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.network import Attention, Llama

ROWS_PER_BATCH = 512


def sample(
    network: Llama,
    prompts: Sequence[list[int]],
    end_id: int,
    *,
    num_samples: int = 1,
    max_tokens: int = 160,
    temperature: float = 1.0,
    seed: int = 0,
    on_batch: Callable[[int], object] | None = None,
) -> list[list[list[int]]]:
    """Completions by prompt, in the order given, each ending with ``end_id`` unless cut.

    Args:
        network: the generator.
        prompts: token ids, the assistant's first words included if there are any.
        end_id: the token that ends a completion.
        num_samples: completions of each prompt.
        max_tokens: bound on each completion.
        temperature: 0 takes the likeliest token.
        seed: of the random stream; the same call gives the same samples.
        on_batch: told the number of prompts done with each batch.
    """
    generator = torch.Generator(device=network.cos.device).manual_seed(seed)
    results: list[list[list[int]]] = [[[] for _ in range(num_samples)] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    per_batch = max(1, ROWS_PER_BATCH // num_samples)
    for start in range(0, len(order), per_batch):
        batch = order[start : start + per_batch]
        decoding = _Decoding(network, [prompts[at] for at in batch], num_samples, max_tokens)
        for drawn in decoding.run(end_id, max_tokens, temperature, generator):
            for place, tokens in drawn:
                for row, token in zip(results[batch[place]], tokens, strict=True):
                    if not row or row[-1] != end_id:
                        row.append(token)
        if on_batch is not None:
            on_batch(len(batch))
    return results


class _Decoding:
    """One batch: the prompts' cache (P, H, Tp, D) and the samples' (P, S, H, T, D) by layer."""

    @torch.inference_mode()
    def __init__(
        self, network: Llama, prompts: list[list[int]], num_samples: int, max_tokens: int
    ) -> None:
        self._network, self._num_samples = network, num_samples
        shape, device = network.shape, network.cos.device
        length = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
        offsets = torch.tensor([length - len(prompt) for prompt in prompts])
        self._offset = offsets.to(device)  # (P,)
        self._length = length
        keys = torch.arange(length, device=device)
        self._seen = keys[None] >= self._offset[:, None]  # (P, Tp)
        self._shared: list[tuple[Tensor, Tensor]] = []
        self._last = self._prefill(ids.to(device))
        sizes = (len(prompts), num_samples, shape.num_attention_heads, max_tokens, shape.head_dim)
        layers = range(shape.num_hidden_layers)
        self._own = [
            (torch.zeros(sizes, device=device), torch.zeros(sizes, device=device)) for _ in layers
        ]
        self._places = torch.arange(len(prompts))

    @torch.inference_mode()
    def run(
        self, end_id: int, max_tokens: int, temperature: float, generator: torch.Generator
    ) -> Iterator[list[tuple[int, list[int]]]]:
        """Yield, step by step, (prompt as given, one token for each of its samples)."""
        logits = self._last[:, None].expand(-1, self._num_samples, -1)
        ended = torch.zeros(logits.shape[:2], dtype=torch.bool)
        for step in range(max_tokens):
            drawn = _draw(logits, temperature, generator)  # (P, S)
            on_host = drawn.cpu()
            yield list(zip(self._places.tolist(), on_host.tolist(), strict=True))
            ended |= on_host == end_id
            running = ~ended.all(-1)
            if not running.any() or step + 1 == max_tokens:
                return
            if running.float().mean() < 0.8:
                ended, drawn = ended[running], drawn[running.to(drawn.device)]
                self._keep(running)
            logits = self._decode(drawn, step)

    def _keep(self, running: Tensor) -> None:
        self._places = self._places[running]
        running = running.to(self._offset.device)
        self._offset, self._seen = self._offset[running], self._seen[running]
        self._shared = [(k[running], v[running]) for k, v in self._shared]
        self._own = [(k[running], v[running]) for k, v in self._own]

    def _prefill(self, ids: Tensor) -> Tensor:
        """Fill the prompts' cache; logits (P, vocabulary) after the last token."""
        network = self._network
        positions = (torch.arange(self._length, device=ids.device) - self._offset[:, None]).clamp(0)
        cos, sin = network.cos[positions][:, None], network.sin[positions][:, None]
        causal = torch.ones(self._length, self._length, dtype=torch.bool, device=ids.device).tril()
        # A padding token sees itself, so that no softmax is over nothing.
        itself = torch.eye(self._length, dtype=torch.bool, device=ids.device)
        mask = ((causal[None] & self._seen[:, None]) | itself)[:, None]  # (P, 1, Tp, Tp)
        x = network.model.embed_tokens(ids)
        for layer in network.model.blocks():
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            self._shared.append((k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + layer.self_attn.join(mixed)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return network.logits(network.model.norm(x[:, -1]))

    def _decode(self, drawn: Tensor, step: int) -> Tensor:
        """Logits (P, S, vocabulary) after one more token (P, S) of every sample."""
        network, (num_prompts, num_samples) = self._network, drawn.shape
        positions = (self._length - self._offset + step)[:, None].expand(-1, num_samples)
        positions = positions.reshape(-1)  # (P * S,)
        cos, sin = network.cos[positions][:, None, None], network.sin[positions][:, None, None]
        x = network.model.embed_tokens(drawn.reshape(-1, 1))  # (P * S, 1, C)
        for index, layer in enumerate(network.model.blocks()):
            qkv = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            q, k, v = (part.view(num_prompts, num_samples, -1, qkv[0].shape[-1]) for part in qkv)
            own_k, own_v = self._own[index]
            own_k[:, :, :, step], own_v[:, :, :, step] = k, v
            mixed = self._attend(index, q, step + 1)
            x = x + _joined(layer.self_attn, mixed)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits = network.logits(network.model.norm(x[:, -1]))
        return logits.view(num_prompts, num_samples, -1)

    def _attend(self, index: int, q: Tensor, tokens: int) -> Tensor:
        """Attention of q (P, S, H, D) over prompt and own tokens; the same shape."""
        shared_k, shared_v = self._shared[index]
        own_k, own_v = (part[:, :, :, :tokens] for part in self._own[index])
        q = q * q.shape[-1] ** -0.5
        on_prompt = q.transpose(1, 2) @ shared_k.transpose(-1, -2)  # (P, H, S, Tp)
        on_prompt = on_prompt.masked_fill(~self._seen[:, None, None], float("-inf"))
        on_own = (own_k @ q[..., None])[..., 0].transpose(1, 2)  # (P, H, S, T)
        weights = torch.cat([on_prompt, on_own], dim=-1).softmax(-1)
        of_prompt, of_own = weights[..., : self._length], weights[..., self._length :]
        mixed = (of_prompt @ shared_v).transpose(1, 2)  # (P, S, H, D)
        mixed_own: Tensor = (of_own.transpose(1, 2)[..., None, :] @ own_v)[..., 0, :]
        return mixed + mixed_own


def _joined(attention: Attention, mixed: Tensor) -> Tensor:
    joined: Tensor = attention.o_proj(mixed.flatten(0, 1).flatten(1)[:, None])
    return joined


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token for each row, by adding Gumbel noise."""
    if temperature == 0:
        return logits.argmax(-1)
    noise = torch.empty(logits.shape, device=logits.device).exponential_(generator=generator)
    return (logits.float() / temperature - noise.log()).argmax(-1)
