"""What a store can refuse, as one tree.

StoreError
├── StoreConfigError          a URL or option that no store can be opened with
├── StoreInputError           a key, value or number that no store would take
│   └── ValueTooLarge         a value over the store's bound
└── StoreUnavailable          the store cannot answer now; callers go on without it
    └── StoreClosed           it was closed by its owner
"""

from __future__ import annotations


class StoreError(Exception):
    """Anything a store raises on purpose."""


class StoreConfigError(StoreError):
    """The URL or an option is wrong; the message names it and never carries a password."""


class StoreInputError(StoreError):
    """A key, value or number outside what the contract allows; always the caller's bug."""


class ValueTooLarge(StoreInputError):
    """The value is larger than the store takes.

    Args:
        size_bytes: The value's size.
        max_bytes: The most this store takes.
    """

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"the value has {size_bytes} bytes; this store takes at most {max_bytes}: "
            "split it or keep less"
        )
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class StoreUnavailable(StoreError):
    """The store did not answer, or answered with a failure of its own.

    A write that ends in this error may or may not have happened.
    """


class StoreClosed(StoreUnavailable):
    """The store was closed; nothing more will come."""
