from __future__ import annotations

from typing import Any

import pytest

from engines.openai_names import Lexicon, Named, read_choice, spell


def named(*texts: str) -> list[Named]:
    return [Named(text, -0.5) for text in texts]


@pytest.mark.parametrize(
    ("text", "tokens", "spelled"),
    [
        ("one two", ("one", " two"), ("one", " two")),
        ("a é b", ("a ", "\ufffd", "\ufffd", " b"), ("a ", "", "é", " b")),
        ("a é b", ("a ", "", "", " b"), ("a ", "", "é", " b")),
        ("éé", ("", "", "é"), ("", "é", "é")),
        ("é", ("\ufffd", "\ufffd"), ("", "é")),
        ("ab", ("a", "", "b"), ("a", "", "b")),
        (")è+", (")", "", "è", "+"), (")", "", "è", "+")),
        ("H \ufffd\\x", ("H", "", "\\", "x"), ("H", " \ufffd", "\\", "x")),
        ("ab", ("a", "b", ""), ("a", "b")),
        ("ab", ("a", "b", "<|end|>"), ("a", "b")),
        ("", ("<|end|>",), ()),
        ("a\ufffdb", ("a", "\ufffd", "b"), ("a", "\ufffd", "b")),
    ],
)
def test_names_are_laid_along_the_text(
    text: str, tokens: tuple[str, ...], spelled: tuple[str, ...]
) -> None:
    found = spell(text, named(*tokens), is_cut=False)
    assert found == [one.encode() for one in spelled]
    assert b"".join(found).decode() == text


@pytest.mark.parametrize("tokens", [("on",), ("two",), ("one", " too"), ("one", "", "x")])
def test_names_that_do_not_fit_are_none(tokens: tuple[str, ...]) -> None:
    assert spell("one two", named(*tokens), is_cut=False) is None


def test_a_cut_text_may_end_inside_a_token() -> None:
    assert spell("one t", named("one", " two"), is_cut=True) == [b"one"]


def test_numbers_are_given_in_order_and_kept() -> None:
    lexicon = Lexicon()
    assert lexicon.ids_of([b"a", b"b", b"a"]) == (0, 1, 0)
    assert lexicon.numbered([("b", -1.0), ("c", -2.0)]) == ((1, -1.0), (2, -2.0))
    assert lexicon.decode((1, 2)) == b"bc"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"delta": {"content": "a"}}, "a"),
        ({"delta": {"content": None, "refusal": "no"}}, "no"),
        ({"delta": {"role": "assistant"}}, ""),
        ({"text": "b"}, "b"),
        ({"delta": {"reasoning": "hm"}}, ""),
    ],
)
def test_the_text_of_a_choice(choice: dict[str, Any], text: str) -> None:
    assert read_choice(choice) == (text, [])


def test_names_of_either_route() -> None:
    tops = [{"token": "b", "logprob": -2.0}, {"token": "a", "logprob": -0.1}]
    chat = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": tops}]}
    completion = {
        "tokens": ["a"],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"b": -2.0, "a": -0.1}],
    }
    expected = [Named("a", -0.1, (("a", -0.1), ("b", -2.0)))]
    assert read_choice({"delta": {"content": "a"}, "logprobs": chat}) == ("a", expected)
    assert read_choice({"text": "a", "logprobs": completion}) == ("a", expected)
