"""Stands in for SGLang's compiled kernels where none can be loaded.

The published kernel package is made for CUDA only, and one of its functions is imported on every
start. On a CPU a dense Llama or Qwen model takes the torch path and calls none of them; one that
does call a kernel is told so. This is part of the test rig and of nothing else.
"""

from collections.abc import Callable
from typing import NoReturn

__version__ = "0.4.99"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """A kernel that refuses to run; submodules and dunders are missing as usual."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"the kernel {name!r} does not exist on this CPU rig")

    missing.__name__ = name
    return missing
