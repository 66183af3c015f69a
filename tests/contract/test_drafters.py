"""Every registered drafter keeps the laws of engines.drafters.conformance."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.drafters.base import Drafter
from engines.drafters.conformance import CHECKS, VOCABULARY, Make
from engines.drafters.errors import DrafterError
from search.plugins import load

DRAFTERS = load("bough.drafters")


@pytest.mark.parametrize("name", list(DRAFTERS))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_drafter_keeps_the_law(name: str, check: Callable[[Make], None]) -> None:
    def make() -> Drafter:
        made: Drafter = DRAFTERS[name](VOCABULARY, {})
        return made

    assert isinstance(make(), Drafter)
    check(make)


def test_the_built_in_ones_are_registered() -> None:
    built_in = {"adaptive", "reference_aded", "ngram", "suffix", "token_recycling"}
    assert built_in <= set(DRAFTERS)


@pytest.mark.parametrize("name", list(DRAFTERS))
@pytest.mark.parametrize("options", [{"colour": 3}, {"max_match": "5"}, {"max_tenants": 0}])
def test_wrong_options_are_refused_by_name(name: str, options: dict[str, object]) -> None:
    [wrong] = options
    with pytest.raises(DrafterError, match=wrong):
        DRAFTERS[name](VOCABULARY, options)
