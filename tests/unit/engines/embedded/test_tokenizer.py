"""Tokens to bytes and back for both families of vocabularies, and the sandboxed chat template."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import ModelLoadError, PromptError
from tests.contract.tiny_llama import write_tiny_llama

TEXTS = [
    "",
    "the cat sat on the mat",
    "  two  spaces\tand\na line ",
    "é € 🌲 \u0000 中文 e\u0301",
    "<|user|> is not special here? <|no|>",
]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_tiny_llama(tmp_path_factory.mktemp("bytes")))


def write_pieces(directory: Path) -> Path:
    """A SentencePiece-style vocabulary with byte fallback, as Llama 2 has."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [
        "\u2581",
        "\u2581the",
        "\u2581cat",
        "the",
        "cat",
        "s",
        "a",
        "t",
        "e",
        "h",
        "c",
        "\u2581t",
    ]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "t")]
    pieces += ["th"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<note>", normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_pieces(tmp_path_factory.mktemp("pieces")))


@pytest.mark.parametrize("text", [*TEXTS[:4], "<note> the cat", "a the t"])
def test_pieces_come_back(pieces: ChatTokenizer, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS[:4])
def test_bytes_come_back(bytewise: ChatTokenizer, text: str) -> None:
    assert bytewise.decode(bytewise.encode(text)) == text


@given(text=st.text(max_size=30), cut=st.integers(0, 40))
def test_decoding_any_cut_joins_to_the_whole(
    bytewise: ChatTokenizer, pieces: ChatTokenizer, text: str, cut: int
) -> None:
    for tokenizer in (bytewise, pieces):
        ids = tokenizer.encode(text)
        table = tokenizer.token_bytes
        head = b"".join(table[i] for i in ids[:cut])
        tail = b"".join(table[i] for i in ids[cut:])
        assert (head + tail).decode() == text
        assert tokenizer.decode(ids[:cut]) == head.decode("utf-8", "replace")


def test_special_tokens_have_no_text_and_added_ones_do(pieces: ChatTokenizer) -> None:
    ids = pieces.encode("<s>cat<note></s>")
    assert pieces.decode(ids) == "cat<note>"
    assert pieces.special_ids == {0, 1, 2}


def test_half_a_character_shows_as_a_replacement(bytewise: ChatTokenizer) -> None:
    table = bytewise.token_bytes
    lead = table.index("é".encode()[:1])
    assert bytewise.decode([lead]) == "\ufffd"


def test_lone_surrogates_become_replacements(bytewise: ChatTokenizer) -> None:
    assert bytewise.decode(bytewise.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def test_ids_beyond_a_hole_have_their_text(tmp_path: Path) -> None:
    """Added tokens need not follow the vocabulary without a gap."""
    write_tiny_llama(tmp_path)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocab = raw["model"]["vocab"]
    merged = max(vocab, key=lambda token: vocab[token])
    vocab[merged] += 40
    path.write_text(json.dumps(raw))
    tokenizer = ChatTokenizer(tmp_path)
    assert tokenizer.size == vocab[merged] + 1
    assert tokenizer.decode([vocab[merged]]).encode() == tokenizer.token_bytes[vocab[merged]]
    assert tokenizer.token_bytes[vocab[merged]]


def test_the_hash_tells_vocabularies_apart(tmp_path: Path) -> None:
    names = ("one", "same", "renamed", "other")
    made = {name: write_tiny_llama(tmp_path / name) for name in names}
    path = made["renamed"] / "tokenizer.json"
    path.write_text(path.read_text().replace("<|system|>", "<|planet|>"))
    path = made["other"] / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"] = {t: i for t, i in raw["model"]["vocab"].items() if i < 280}
    raw["model"]["merges"] = []
    path.write_text(json.dumps(raw))
    hashes = {name: ChatTokenizer(directory).hash for name, directory in made.items()}
    assert hashes["one"] == hashes["same"]
    assert len(set(hashes.values())) == 3


def with_template(directory: Path, template: Any, **names: Any) -> ChatTokenizer:
    write_tiny_llama(directory)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    config = directory / "tokenizer_config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps({**raw, "chat_template": template, **names}))
    return ChatTokenizer(directory)


def render(tokenizer: ChatTokenizer, messages: Any = USER, **options: Any) -> str:
    return tokenizer.render(messages, **{"tools": None, "continue_final": False, **options})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'é': 1} | tojson(indent=1) }}", '{\n "é": 1\n}'),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}y", "y"),
        (
            "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}", "<b>|<|end|>|"),
        ("{% if tools %}t{% else %}n{% endif %}{{ add_generation_prompt }}", "nTrue"),
        ("{% if true %}\n  a\n{% endif %}\n", "  a\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
    ],
)
def test_published_templates_find_what_they_use(
    tmp_path: Path, template: Any, expected: str
) -> None:
    tokenizer = with_template(tmp_path, template, bos_token={"content": "<b>"})
    assert render(tokenizer) == expected


def test_tools_and_the_generation_prompt_are_passed_on(tmp_path: Path) -> None:
    template = "{{ tools | length }}{{ add_generation_prompt }}{{ messages[0].content }}."
    tokenizer = with_template(tmp_path, template)
    assert render(tokenizer, tools=[{}, {}], continue_final=True) == "2Falsehi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 1 / 0 }}",
        "{{ undefined_name.attribute }}",
        "{{ 'x' * 10 | int('a') }}{{ [][0].x }}",
        "{{ '%d' | format('x') }}",
        "{% include 'secrets' %}",
        "{{ {}.popitem() }}",
    ],
)
def test_a_template_that_refuses_or_misbehaves_is_a_prompt_error(
    tmp_path: Path, template: str
) -> None:
    tokenizer = with_template(tmp_path, template)
    with pytest.raises(PromptError, match="chat template refuses"):
        render(tokenizer)


@pytest.mark.parametrize("template", ["{% for %}", "{{ x", 5, {"a": 1}, [{"name": "default"}]])
def test_a_template_that_does_not_parse_is_named(tmp_path: Path, template: Any) -> None:
    with pytest.raises(ModelLoadError, match="template") as caught:
        with_template(tmp_path, template)
    assert "\n" not in str(caught.value)


def test_a_template_file_wins_and_must_be_text(tmp_path: Path) -> None:
    with_template(tmp_path, "old")
    path = tmp_path / "chat_template.jinja"
    path.write_text("new")
    assert render(ChatTokenizer(tmp_path)) == "new"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja"):
        ChatTokenizer(tmp_path)


@pytest.mark.parametrize("template", [None, "", [{"name": "tool_use", "template": "t"}]])
def test_without_a_template_chat_is_refused(tmp_path: Path, template: Any) -> None:
    with pytest.raises(PromptError, match="no chat template"):
        render(with_template(tmp_path, template))


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"


def test_the_final_message_is_continued(tmp_path: Path) -> None:
    tokenizer = with_template(tmp_path, TURNS)
    messages = [*USER, {"role": "assistant", "content": "so far"}]
    assert render(tokenizer, messages, continue_final=True) == "<user>hi<end><assistant>so far"
    messages[-1]["content"] = "so far "
    assert render(tokenizer, messages, continue_final=True).endswith("<assistant>so far")


@pytest.mark.parametrize("begun", ["e", "<", "end>", "d>", " I", "so far "])
def test_what_ends_a_turn_may_hold_the_letters_of_a_short_beginning(
    tmp_path: Path, begun: str
) -> None:
    tokenizer = with_template(tmp_path, TURNS.replace(" | trim", "") + "<eos>")
    messages = [*USER, {"role": "assistant", "content": begun}]
    assert render(tokenizer, messages, continue_final=True) == f"<user>hi<end><assistant>{begun}"
    assert messages[-1]["content"] == begun


@pytest.mark.parametrize("content", ["", " ", None, [{"type": "text", "text": "x"}], "left out"])
def test_a_final_message_that_cannot_be_continued_is_refused(tmp_path: Path, content: Any) -> None:
    tokenizer = with_template(tmp_path, "{% for m in messages %}{{ m.role }}<end>{% endfor %}")
    with pytest.raises(PromptError, match="continue"):
        render(tokenizer, [{"role": "assistant", "content": content}], continue_final=True)


def test_encoding_lets_other_threads_run(bytewise: ChatTokenizer) -> None:
    thread = threading.Thread(target=bytewise.encode, args=("a few words " * 10_000,))
    thread.start()
    steps = 0
    while thread.is_alive():
        steps += 1
        time.sleep(0)
    assert steps > 10  # one or two where the library keeps the interpreter to itself
