"""Text to tokens and back, and the model's own chat template. No tensors.

Decoding joins the bytes of the tokens, so it is exact for any cut of any answer: byte-level and
SentencePiece-style vocabularies are understood. The template runs in a Jinja sandbox with the names
that published templates use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from engines.base import ChatMessage, TokenIds
from engines.embedded.config import read_json
from engines.errors import ModelLoadError, PromptError


class ChatTokenizer:
    """`tokenizer.json` and the chat template of one model directory.

    Args:
        directory: A Hugging Face model directory.

    Raises:
        ModelLoadError: A file is missing or unreadable, or the template does not parse.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.exists():
            raise ModelLoadError(path, "the file is missing; slow tokenizers are not read")
        try:
            self._fast = FastTokenizer.from_file(str(path))
        except Exception as err:  # the library raises plain Exception
            raise ModelLoadError(path, f"not readable as a tokenizer: {err}") from err
        raw = read_json(path)
        added = {int(token["id"]): token for token in raw.get("added_tokens") or ()}
        self.special_ids = frozenset(i for i, token in added.items() if token.get("special"))
        ids = self._fast.get_vocab(with_added_tokens=True)
        self.size = max(ids.values(), default=-1) + 1  # ids may have holes
        self.token_bytes = self._byte_table(raw, added)
        meaning = [sorted(ids.items()), sorted(self.special_ids)]
        self.hash = hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()
        config = directory / "tokenizer_config.json"
        self._config = read_json(config) if config.exists() else {}
        self._template = self._read_template(directory)

    @property
    def has_template(self) -> bool:
        """Whether `render` knows how conversations are written."""
        return self._template is not None

    def encode(self, text: str) -> TokenIds:
        """Ids of `text`, nothing added. Lone surrogates become U+FFFD."""
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # unlike `encode`, the library's batch form lets other threads run meanwhile
        [encoded] = self._fast.encode_batch_fast([clean], add_special_tokens=False)
        return tuple(encoded.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens have none, and broken UTF-8 shows as U+FFFD."""
        table = self.token_bytes
        return b"".join(table[i] for i in ids).decode("utf-8", "replace")

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        continue_final: bool,
        generation_prompt: bool = True,
    ) -> str:
        """The prompt's text.

        Args:
            messages: The conversation.
            tools: Tools the model may call.
            continue_final: Stop where the last message ends, so that it can be continued.
            generation_prompt: End with the opening of the next answer; judges of whole
                conversations leave it out.

        Raises:
            PromptError: The model has no template, or its template refuses the messages.
        """
        if self._template is None:
            raise PromptError("this model has no chat template; it cannot answer chat messages")
        names = {
            key: self._token_text(self._config.get(key))
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        shown = _marked(messages) if continue_final else list(messages)
        try:
            text: str = self._template.render(
                messages=shown,
                tools=list(tools) if tools else None,
                add_generation_prompt=generation_prompt and not continue_final,
                **names,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as err:
            raise PromptError(f"the chat template refuses these messages: {err}") from err
        return _up_to_mark(text) if continue_final else text

    @staticmethod
    def _token_text(value: object) -> str:
        if isinstance(value, Mapping):
            value = value.get("content")
        return value if isinstance(value, str) else ""

    def _read_template(self, directory: Path) -> Any:
        path = directory / "chat_template.jinja"
        source = self._config.get("chat_template")
        if path.exists():
            try:
                source = path.read_text("utf-8")
            except (OSError, ValueError) as err:
                raise ModelLoadError(path, f"not readable as text: {err}") from err
        if isinstance(source, list):
            entries = [entry for entry in source if isinstance(entry, Mapping)]
            source = next(
                (e.get("template", e) for e in entries if e.get("name") == "default"), None
            )
        if not source:
            return None
        if not isinstance(source, str):
            raise ModelLoadError(directory, f"the chat template must be text, not {source!r}")
        extensions: list[str | type[Extension]] = [loopcontrols]
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions
        )
        env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return env.from_string(source)
        except TemplateError as err:
            raise ModelLoadError(directory, f"the chat template does not parse: {err}") from err

    def _byte_table(
        self, raw: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]]
    ) -> list[bytes]:
        is_byte_level = "ByteLevel" in json.dumps(raw.get("decoder") or raw.get("pre_tokenizer"))
        table = []
        for i in range(self.size):
            text = self._fast.id_to_token(i)
            if text is None or (i in added and added[i].get("special")):
                table.append(b"")
            elif i in added:
                table.append(text.encode())
            elif is_byte_level:
                table.append(b"".join(_BYTE_OF.get(c, c.encode()) for c in text))
            elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                table.append(bytes([int(text[3:5], 16)]))
            else:
                table.append(text.replace("\u2581", " ").encode())
        return table


_MARK = "\ue000the answer goes on here\ue000 "
"""Behind the final message: what ends a turn may hold the same letters as a short beginning."""


def _marked(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages, the last one with a mark where it is to be continued."""
    last = messages[-1].get("content") if messages else None
    if not isinstance(last, str) or not last.strip():
        raise PromptError("cannot continue the final message: it needs text")
    return [*messages[:-1], {**messages[-1], "content": last + _MARK}]


def _up_to_mark(text: str) -> str:
    """A rendered conversation up to the mark; where the template strips messages, so is it."""
    end = text.rfind(_MARK.rstrip())
    if end < 0:
        raise PromptError("cannot continue the final message: the chat template leaves it out")
    return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()


def _raise(message: str) -> None:
    raise TemplateError(message)


def _byte_alphabet() -> dict[str, bytes]:
    """The byte-level alphabet: printable bytes stand for themselves, the rest for U+0100 and up."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): bytes([b]) for b in plain}
    others = [b for b in range(256) if b not in set(plain)]
    table.update({chr(256 + i): bytes([b]) for i, b in enumerate(others)})
    return table


_BYTE_OF = _byte_alphabet()
