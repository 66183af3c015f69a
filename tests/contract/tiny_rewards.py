"""Checkpoints of a few thousand random weights in exactly the layouts of published reward models.

Names and shapes of tensors, `config.json`, special tokens and chat templates are those of the
published ones; the numbers are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

HIDDEN: Final = 64
CORPUS: Final = (
    "Mia has 12 coins and finds 30 coins. How many coins does she have?",
    "Please reason step by step, and put your final answer within the box.",
    "Step 1: 12+30=42. The answer is 42. one cat sat on the mat",
    "system user assistant",
)
CHATML: Final = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nPlease reason step by step."
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING: Final = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}",
)
LLAMA3: Final = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|start_header_id|>system"
    "<|end_header_id|>\n\nCutting Knowledge Date: December 2023<|eot_id|>{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
LLAMA3_SPECIAL: Final = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen and Llama 3 cut text before merging; they differ in how many digits go together."""
SHAPE: Final[Mapping[str, Any]] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of width 32: what vLLM's kernels for CPUs take
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Checkpoint:
    """One published layout.

    Attributes:
        kind: process or outcome, as in `[reward_models.ID] kind`.
        options: What it must be told, because its files do not say.
        write: Writes the directory.
    """

    kind: str
    options: Mapping[str, Any]
    write: Callable[..., None]


def byte_level(special: tuple[str, ...], template: str, bos: str | None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts text as those of Qwen and Llama 3 do."""
    words = Regex(WORDS % ("{1,3}" if special is LLAMA3_SPECIAL else ""))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=special[0] if bos is None else special[1],
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def sentence_piece() -> PreTrainedTokenizerFast:
    """A tokenizer that writes blanks as U+2581, one before the text, as Mistral's first one did."""
    letters = sorted({*"".join(CORPUS).replace(" ", ""), *"-=<>*/ки", "\u2581"})
    merges = [("к", "и"), *(("\u2581", piece) for piece in ("ки", "+", "-", "S", "T", "M"))]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def edit(directory: Path, **changes: object) -> None:
    """Change keys of `config.json`."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(directory: Path, layers: Mapping[str, tuple[int, int]], *, without: str = "") -> None:
    """Add linear layers of (out, in) with biases to the checkpoint, and drop a tensor."""
    path = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != without}
    for name, (rows, columns) in layers.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns) * 0.2
        tensors[f"{name}.bias"] = torch.randn(rows) * 0.2
    save_file(tensors, path, metadata={"format": "pt"})


def write_qwen_math_prm(directory: Path, context_tokens: int) -> None:
    """Qwen2 with a two-layer `score` over the steps' `<extra_0>`, and no output head."""
    fast = byte_level(CHATML_SPECIAL, CHATML, None)
    fast.save_pretrained(directory)
    config = Qwen2Config(vocab_size=len(fast), max_position_embeddings=context_tokens, **SHAPE)
    Qwen2ForCausalLM(config).save_pretrained(directory)
    put(directory, {"score.0": (HIDDEN, HIDDEN), "score.2": (2, HIDDEN)}, without="lm_head.weight")
    edit(directory, architectures=["Qwen2ForProcessRewardModel"])


def write_skywork_o1_prm(directory: Path, context_tokens: int) -> None:
    """Qwen2 with a `v_head`."""
    fast = byte_level(CHATML_SPECIAL, CHATML, "<|endoftext|>")
    fast.save_pretrained(directory)
    config = Qwen2Config(vocab_size=len(fast), max_position_embeddings=context_tokens, **SHAPE)
    Qwen2ForCausalLM(config).save_pretrained(directory)
    put(directory, {"v_head.summary": (1, HIDDEN)})
    edit(directory, architectures=["Qwen2ForPrmModel"])


def write_rlhflow_prm(directory: Path, context_tokens: int) -> None:
    """Llama 3.1 that replies + or - to every step."""
    fast = byte_level(LLAMA3_SPECIAL, LLAMA3, "<|begin_of_text|>")
    fast.save_pretrained(directory)
    config = LlamaConfig(vocab_size=len(fast), max_position_embeddings=context_tokens, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(directory)


def write_math_shepherd(directory: Path, context_tokens: int) -> None:
    """Mistral, with its sliding window, that predicts + or - at the tag behind every step."""
    fast = sentence_piece()
    fast.save_pretrained(directory)
    config = MistralConfig(
        vocab_size=len(fast),
        max_position_embeddings=4 * context_tokens,
        sliding_window=context_tokens,
        **SHAPE,
    )
    MistralForCausalLM(config).save_pretrained(directory)


def write_reward_llama(directory: Path, context_tokens: int) -> None:
    """Skywork-Reward-V2 on Llama: one label, an output head of its own that is not stored."""
    fast = byte_level(LLAMA3_SPECIAL, LLAMA3, "<|begin_of_text|>")
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(fast), max_position_embeddings=context_tokens, num_labels=1, **SHAPE
    )
    config.pad_token_id = None
    LlamaForSequenceClassification(config).save_pretrained(directory)


def write_reward_qwen3(directory: Path, context_tokens: int) -> None:
    """Skywork-Reward-V2 on Qwen3: one label, tied embeddings, an empty thought in the template."""
    fast = byte_level(CHATML_SPECIAL, THINKING, None)
    fast.save_pretrained(directory)
    config = Qwen3Config(
        vocab_size=len(fast),
        max_position_embeddings=context_tokens,
        num_labels=1,
        tie_word_embeddings=True,
        head_dim=32,
        **SHAPE,
    )
    config.pad_token_id = None
    Qwen3ForSequenceClassification(config).save_pretrained(directory)


CHECKPOINTS: Final[Mapping[str, Checkpoint]] = {
    "qwen-math-prm": Checkpoint("process", {}, write_qwen_math_prm),
    "skywork-o1-prm": Checkpoint("process", {}, write_skywork_o1_prm),
    "rlhflow-prm": Checkpoint("process", {"preset": "rlhflow-prm"}, write_rlhflow_prm),
    "math-shepherd": Checkpoint("process", {"preset": "math-shepherd"}, write_math_shepherd),
    "reward-llama": Checkpoint("outcome", {}, write_reward_llama),
    "reward-qwen3": Checkpoint("outcome", {}, write_reward_qwen3),
}


def write_checkpoint(
    name: str, directory: Path, *, seed: int = 0, context_tokens: int = 384
) -> Path:
    """One of `CHECKPOINTS`, as a model directory."""
    torch.manual_seed(seed)
    CHECKPOINTS[name].write(directory, context_tokens)
    return directory
