"""What the echo engine answers beyond the laws that every engine keeps."""

import math
from typing import Any

import pytest

from engines.base import Capability, Continuation, Conversation, Engine, Finish, Prompt, Sampling
from engines.echo import open_engine
from engines.echo_model import EOS
from engines.errors import InvariantError, ModelLoadError, PromptError, UnsupportedByEngine


def said(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]


async def answers(
    engine: Engine, prompt: Prompt, how: Sampling | None = None, seeds: tuple[int, ...] = (0,)
) -> list[Continuation]:
    prefix = await engine.open(prompt)
    items = engine.sample(prefix, how or Sampling(), n=len(seeds), seeds=seeds)
    done = [item async for item in items if isinstance(item, Continuation)]
    for one in done:
        one.prefix.release()
    prefix.release()
    assert engine.stats().pages_claimed == 0
    return done


@pytest.mark.parametrize("text", ["hello", "é €\n😀", ""])
async def test_it_echoes_the_last_user_message(text: str) -> None:
    engine = open_engine("echo", "", {})
    messages = said("first", "reply", text)
    (answer,) = await answers(engine, engine.render(messages))
    assert (answer.text, answer.finish) == (text, Finish.STOP_TOKEN)
    assert answer.logps == (0.0,) * len(text.encode())
    assert answer.overrun_ids == (EOS,)


async def test_it_goes_on_after_an_open_answer() -> None:
    engine = open_engine("echo", "", {})
    prompt = engine.render(said("hello", "he"), continue_final=True)
    (answer,) = await answers(engine, prompt)
    assert answer.text == "llo"


async def test_it_reads_conversations_and_text_parts() -> None:
    engine = open_engine("echo", "", {})
    parts: Any = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    prompt = Conversation(({"role": "user", "content": parts},), assistant_prefix="one")
    (answer,) = await answers(engine, prompt)
    assert answer.text == " two"


async def test_without_a_user_message_there_is_nothing_to_say() -> None:
    engine = open_engine("echo", "", {})
    (answer,) = await answers(engine, engine.render([{"role": "system", "content": "be brief"}]))
    assert answer.text == ""


async def test_an_answer_that_may_not_end_repeats_the_message() -> None:
    engine = open_engine("echo", "", {})
    prompt = engine.render(said("abc"))
    (answer,) = await answers(engine, prompt, Sampling(min_tokens=7))
    assert answer.text == "abcabca"
    (answer,) = await answers(engine, prompt, Sampling(max_tokens=5, ban_ids=frozenset({EOS})))
    assert (answer.text, answer.finish) == ("abcab", Finish.LENGTH)


async def test_a_strong_bias_changes_the_answer() -> None:
    engine = open_engine("echo", "", {})
    how = Sampling(max_tokens=3, logit_bias={ord("z"): 100.0})
    (answer,) = await answers(engine, engine.render(said("abc")), how)
    assert answer.text == "zzz"


async def test_penalties_wear_a_repeated_byte_out() -> None:
    engine = open_engine("echo", "", {"margin": 1.0})
    how = Sampling(temperature=0.0, max_tokens=3, presence_penalty=2.0)
    (answer,) = await answers(engine, engine.render(said("aaa")), how)
    assert answer.text[0] == "a"
    assert "a" not in answer.text[1:]


async def test_noise_follows_the_distribution_it_reports() -> None:
    # The false-alarm rate of six standard errors is 2e-9.
    engine = open_engine("echo", "", {"margin": 4.0})
    prompt = engine.render(said("q"))
    prefix = await engine.open(prompt)
    (row,) = await engine.next_logprobs([prefix], ids=[ord("q")])
    prefix.release()
    expected, draws = math.exp(row.logps[0]), 2000
    done = await answers(engine, prompt, Sampling(max_tokens=1), tuple(range(draws)))
    share = sum(one.token_ids == (ord("q"),) for one in done) / draws
    assert abs(share - expected) < 6 * math.sqrt(expected * (1 - expected) / draws)


async def test_truncation_leaves_the_echo() -> None:
    engine = open_engine("echo", "", {"margin": 3.0})
    prompt = engine.render(said("hello"))
    for how in (Sampling(top_k=1), Sampling(min_p=0.5), Sampling(top_p=1e-9)):
        (answer,) = await answers(engine, prompt, how)
        assert answer.text == "hello"


async def test_a_released_prefix_is_refused() -> None:
    engine = open_engine("echo", "", {})
    prefix = await engine.open(engine.render(said("x")))
    prefix.release()
    with pytest.raises(InvariantError):
        prefix.fork()


@pytest.mark.parametrize(
    "messages", [[], [{"role": "poet", "content": "x"}], [{"role": "user", "content": 3}]]
)
def test_messages_that_cannot_be_rendered_are_refused(messages: Any) -> None:
    with pytest.raises(PromptError):
        open_engine("echo", "", {}).render(messages)


async def test_what_it_has_not_is_refused_by_name() -> None:
    engine = open_engine("echo", "", {})
    with pytest.raises(UnsupportedByEngine) as refused:
        engine.render(said("x"), tools=[{"type": "function"}])
    assert refused.value.capability == Capability.TOOLS
    prefix = await engine.open(engine.render(said("x")))
    with pytest.raises(UnsupportedByEngine, match="banned"):
        engine.sample(prefix, Sampling(ban_ids=frozenset(range(engine.info.vocab_size))))
    for ids in ((), (-1,), (engine.info.vocab_size,)):
        with pytest.raises(PromptError):
            await engine.open(ids)


@pytest.mark.parametrize(
    "options", [{"volume": 11}, {"margin": -1.0}, {"context_tokens": 1}, {"token_s": -1.0}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError):
        open_engine("echo", "", options)
