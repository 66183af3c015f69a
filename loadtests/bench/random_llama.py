"""A Llama of about 30 million random weights, as a model directory: speed needs no meaning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL: Final = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Shape of the network; the defaults make 29.9 million parameters."""

    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    vocab_size: int = 4096
    max_position_embeddings: int = 1024


def write_random_llama(directory: Path, *, seed: int, size: Size | None = None) -> Path:
    """Weights from `seed` in float32, a byte-level tokenizer and a chat template."""
    shape = size or Size()
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_tokenizer(shape.vocab_size),
        eos_token=_SPECIAL[0],
        additional_special_tokens=list(_SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(directory)
    config = LlamaConfig(
        dtype="float32",
        **asdict(shape),
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _tokenizer(vocab_size: int) -> Tokenizer:
    """All bytes and as many pairs of letters and digits as there is room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(alphabet) - len(_SPECIAL)
    merges = [(a, b) for a in ascii_letters + digits for b in ascii_letters + digits][:room]
    tokens = [*_SPECIAL, *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
