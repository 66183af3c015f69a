"""A claim on nothing but tokens, for engines whose cache has no addresses.

vLLM's prefix cache, SGLang's radix tree and a remote server find cached tokens by themselves; what
a claim can do there is to remember the tokens. So `release` gives nothing back, a released claim
may still be used, and `cached_tokens` is what the engine reported when the tokens were last run.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.base import Prefix, TokenIds
from engines.errors import InvariantError


class TokenPrefix:
    """`engines.base.Prefix` as a plain value.

    Args:
        token_bytes: The bytes of every token id, empty for special ones; also tells whose claim
            this is.
        token_ids: All tokens, prompt first.
        response_start: Leading tokens that are the prompt.
        tenant: Whose cache.
        priority: As in `Engine.open`; higher runs first.
        cached_tokens: Tokens that the engine found in its cache.
    """

    __slots__ = (
        "cached_tokens",
        "priority",
        "response_start",
        "tenant",
        "token_bytes",
        "token_ids",
    )

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        token_ids: TokenIds,
        response_start: int,
        *,
        tenant: str = "",
        priority: int = 0,
        cached_tokens: int = 0,
    ) -> None:
        self.token_bytes = token_bytes
        self.token_ids = token_ids
        self.response_start = response_start
        self.tenant = tenant
        self.priority = priority
        self.cached_tokens = cached_tokens

    @property
    def position(self) -> int:
        """Position in the answer of the token to be drawn next."""
        return len(self.token_ids) - self.response_start

    @property
    def answer_bytes(self) -> bytes:
        """Bytes of the answer so far."""
        table = self.token_bytes
        return b"".join(table[token] for token in self.token_ids[self.response_start :])

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.answer_bytes.decode("utf-8", "replace")

    def fork(self) -> TokenPrefix:
        """Another claim on the same tokens."""
        return self.extended((), self.cached_tokens)

    def extended(self, ids: TokenIds, cached_tokens: int) -> TokenPrefix:
        """A claim on these tokens and `ids`; nothing is computed.

        Args:
            ids: Appended to the tokens.
            cached_tokens: What the engine reported when it ran them.
        """
        return TokenPrefix(
            self.token_bytes,
            self.token_ids + tuple(ids),
            self.response_start,
            tenant=self.tenant,
            priority=self.priority,
            cached_tokens=cached_tokens,
        )

    def release(self) -> None:
        """Nothing is held, so nothing is given back."""


def own_prefix(prefix: Prefix, token_bytes: Sequence[bytes]) -> TokenPrefix:
    """`prefix`, if it was made with this very table.

    Raises:
        InvariantError: It belongs to another engine.
    """
    if not isinstance(prefix, TokenPrefix) or prefix.token_bytes is not token_bytes:
        raise InvariantError(f"a {type(prefix).__name__} of another engine was given to this one")
    return prefix
