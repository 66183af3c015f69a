"""What SGLang 0.5.23 does on the wire, as far as the engine relies on it or must work around it.

Each check runs on the fake in every test run, and on a real server in `make test-sglang`: so the
fake cannot drift from what it stands for. The checks know nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tests.contract.sglang_client import Wire

PROMPT = list(range(50, 70))
GREEDY = {"temperature": 0, "max_new_tokens": 3}
LONG = {"temperature": 1, "max_new_tokens": 900, "ignore_eos": True}


Check = Callable[[Wire], Awaitable[None]]


async def flushed(wire: Wire) -> None:
    """An empty cache; what still runs is waited for."""
    reply = await wire.client.post("/flush_cache", params={"timeout": 10})
    assert reply.status_code == 200, reply.text


def cached(reply: Any) -> int:
    found: int = reply["meta_info"]["cached_tokens"]
    return found


async def one_is_an_object_many_are_a_list(wire: Wire) -> None:
    single = await wire.ask(input_ids=PROMPT, sampling_params=GREEDY)
    assert len(single["output_ids"]) == 3
    (alone,) = await wire.ask(input_ids=[PROMPT], sampling_params=GREEDY)
    assert alone["output_ids"] == single["output_ids"]
    assert len(await wire.ask(input_ids=PROMPT, sampling_params={**GREEDY, "n": 2})) == 2


async def a_batch_times_n_is_ordered_by_item(wire: Wire) -> None:
    params = {**GREEDY, "n": 2}
    replies = await wire.ask(input_ids=[PROMPT, PROMPT[:5]], sampling_params=params)
    assert [reply["meta_info"]["prompt_tokens"] for reply in replies] == [20, 20, 5, 5]


async def a_batch_may_have_parameters_per_item(wire: Wire) -> None:
    params = [GREEDY, {**GREEDY, "max_new_tokens": 1}]
    replies = await wire.ask(input_ids=[PROMPT, PROMPT[:5]], sampling_params=params)
    assert [len(reply["output_ids"]) for reply in replies] == [3, 1]


async def rids_are_kept_numbered_or_made(wire: Wire) -> None:
    both = [PROMPT, PROMPT[:5]]

    async def ids(**body: Any) -> list[str]:
        replies = await wire.ask(**body)
        return [reply["meta_info"]["id"] for reply in replies]

    assert await ids(input_ids=both, rid=["a1", "b1"], sampling_params=GREEDY) == ["a1", "b1"]
    assert await ids(input_ids=both, rid="c", sampling_params=GREEDY) == ["c_0", "c_1"]
    fresh = await ids(input_ids=PROMPT, rid="d", sampling_params={**GREEDY, "n": 2})
    assert len(set(fresh)) == 2
    assert "d" not in fresh


async def prompt_logprobs_begin_with_nothing(wire: Wire) -> None:
    reply = await wire.ask(
        input_ids=PROMPT,
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=15,
        top_logprobs_num=2,
    )
    meta = reply["meta_info"]
    assert reply["output_ids"] == []
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    entries = meta["input_token_logprobs"]
    assert [entry[1] for entry in entries] == PROMPT[15:]
    assert entries[0][0] is None
    assert all(entry[0] < 0 for entry in entries[1:])
    assert meta["input_top_logprobs"][0] is None
    assert [len(row) for row in meta["input_top_logprobs"][1:]] == [2] * 4


async def prompt_logprobs_cost_the_cache(wire: Wire) -> None:
    await flushed(wire)
    assert cached(await wire.ask(input_ids=PROMPT, sampling_params=GREEDY)) == 0
    for start, expected in ((0, 0), (7, 7), (-1, 19)):
        reply = await wire.ask(
            input_ids=PROMPT, sampling_params=GREEDY, return_logprob=True, logprob_start_len=start
        )
        assert cached(reply) == expected, start


async def what_was_drawn_is_cached_too(wire: Wire) -> None:
    await flushed(wire)
    first = await wire.ask(input_ids=PROMPT, sampling_params=GREEDY)
    longer = PROMPT + first["output_ids"] + [90, 91]
    assert cached(await wire.ask(input_ids=longer, sampling_params=GREEDY)) == 22


async def samples_share_their_prompt(wire: Wire) -> None:
    await flushed(wire)
    replies = await wire.ask(input_ids=PROMPT, sampling_params={**GREEDY, "n": 3})
    assert [cached(reply) for reply in replies] == [19] * 3


async def a_batch_shares_nothing_yet(wire: Wire) -> None:
    await flushed(wire)
    replies = await wire.ask(input_ids=[PROMPT, PROMPT], sampling_params=GREEDY)
    assert [cached(reply) for reply in replies] == [0, 0]


async def salts_and_keys_part_the_cache(wire: Wire) -> None:
    await flushed(wire)
    for name in ("extra_key", "cache_salt"):
        for value, expected in (("one", 0), ("one", 19), ("two", 0)):
            reply = await wire.ask(
                input_ids=PROMPT, sampling_params=GREEDY, **{name: f"{name}{value}"}
            )
            assert cached(reply) == expected


async def streams_are_cumulative_or_deltas(wire: Wire) -> None:
    asked = {"input_ids": PROMPT, "return_logprob": True, "top_logprobs_num": 1}
    params = {**GREEDY, "max_new_tokens": 4}
    whole = await wire.ask(**asked, sampling_params=params)
    events = await wire.events(**asked, sampling_params=params)
    ids: list[int] = []
    logps: list[Any] = []
    tops: list[Any] = []
    for event in events:
        meta = event["meta_info"]
        if not wire.is_delta:
            ids, logps, tops = [], [], []
        ids += event["output_ids"]
        logps += meta["output_token_logprobs"]
        tops += meta["output_top_logprobs"]
        assert len(ids) == len(logps) == len(tops) == meta["completion_tokens"]
    assert ids == whole["output_ids"]
    assert [entry[1] for entry in logps] == ids
    assert [event["meta_info"]["finish_reason"] is None for event in events[:-1]] == [True] * (
        len(events) - 1
    )
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 4}


async def an_interval_thins_events_out(wire: Wire) -> None:
    params = {**GREEDY, "max_new_tokens": 9, "stream_interval": 4, "ignore_eos": True}
    events = await wire.events(input_ids=PROMPT, sampling_params=params)
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert counts == [1, 5, 9]


async def streams_of_a_batch_have_an_index(wire: Wire) -> None:
    events = await wire.events(input_ids=[PROMPT, PROMPT[:5]], sampling_params=GREEDY)
    sizes = {event["index"]: event["meta_info"]["prompt_tokens"] for event in events}
    assert sizes == {0: 20, 1: 5}


async def a_late_refusal_is_an_event(wire: Wire) -> None:
    params = {**GREEDY, "temperature": -1}
    (event,) = await wire.events(input_ids=PROMPT, sampling_params=params)
    assert event["error"]["code"] == 400
    assert "temperature" in event["error"]["message"]


async def an_abort_ends_a_request_with_what_it_has(wire: Wire) -> None:
    async with wire.streaming(input_ids=PROMPT, rid="f" * 32, sampling_params=LONG) as events:
        await anext(aiter(events))
        assert (await wire.post("/abort_request", rid="f" * 32)).status_code == 200
        last = [event async for event in events][-1]
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert 1 <= last["meta_info"]["completion_tokens"] < 900


async def an_abort_takes_longer_rids_along(wire: Wire) -> None:
    async with (
        wire.streaming(input_ids=PROMPT, rid="r", sampling_params=LONG) as short,
        wire.streaming(input_ids=PROMPT, rid="r1", sampling_params=LONG) as longer,
    ):
        await anext(aiter(short))
        await anext(aiter(longer))
        await wire.post("/abort_request", rid="r")
        ends = [[event async for event in one][-1] for one in (short, longer)]
    assert [end["meta_info"]["finish_reason"]["type"] for end in ends] == ["abort", "abort"]


async def a_prefix_that_is_no_rid_aborts_nothing(wire: Wire) -> None:
    params = {**LONG, "max_new_tokens": 20}
    async with wire.streaming(input_ids=PROMPT, rid="q1", sampling_params=params) as events:
        await anext(aiter(events))
        assert (await wire.post("/abort_request", rid="q")).status_code == 200
        last = [event async for event in events][-1]
    assert last["meta_info"]["finish_reason"] == {"type": "length", "length": 20}


async def an_unknown_rid_is_no_error(wire: Wire) -> None:
    assert (await wire.post("/abort_request", rid="nobody")).status_code == 200


async def errors_have_two_shapes(wire: Wire) -> None:
    unknown = await wire.refusal(input_ids=PROMPT, sampling_params={"warmth": 1})
    assert "unknown field `warmth`" in unknown["error"]
    wrong = await wire.refusal(input_ids=PROMPT, sampling_params={"top_p": 2})
    assert "top_p" in wrong["error"]["message"]


async def an_unknown_key_beside_them_is_ignored(wire: Wire) -> None:
    plain = await wire.ask(input_ids=PROMPT, sampling_params=GREEDY)
    more = await wire.ask(input_ids=PROMPT, sampling_params=GREEDY, warmth=1)
    assert more["output_ids"] == plain["output_ids"]


async def wrong_requests_are_refused(wire: Wire) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"sampling_params": {"max_new_tokens": 2, "min_new_tokens": 5}}, "min_new_tokens"),
        ({"sampling_params": {"logit_bias": {str(wire.vocab_size): 1}}}, "logit_bias"),
        ({"sampling_params": {"stop": ["x"] * 33}}, "stop strings"),
        ({"sampling_params": {"regex": "("}}, "Failed to compile"),
        ({"return_logprob": True, "token_ids_logprob": [wire.vocab_size]}, "token_ids_logprob"),
    ]
    for body, word in cases:
        asked = {"sampling_params": GREEDY, **body}
        if word != "input_ids":
            asked["input_ids"] = PROMPT
        refused = await wire.refusal(**asked)
        assert word in refused["error"]["message"], refused


async def prompts_end_before_the_context(wire: Wire) -> None:
    server = (await wire.client.get("/server_info")).json()
    limit = server["max_req_input_len"]
    filler = PROMPT[:1]
    params = {"max_new_tokens": 1, "temperature": 0}
    await wire.ask(input_ids=filler * (limit - 1), sampling_params=params)
    refused = await wire.refusal(input_ids=filler * limit, sampling_params=params)
    assert str(limit) in refused["error"]["message"]
    refused = await wire.refusal(
        input_ids=PROMPT, sampling_params={"max_new_tokens": limit + 20, "temperature": 0}
    )
    assert "context" in refused["error"]["message"]


async def flushing_waits_for_nobody(wire: Wire) -> None:
    async with wire.streaming(input_ids=PROMPT, rid="e" * 32, sampling_params=LONG) as events:
        await anext(aiter(events))
        assert (await wire.post("/flush_cache")).status_code == 400
        await wire.post("/abort_request", rid="e" * 32)
        assert [event async for event in events]
    await flushed(wire)


async def a_stop_id_stays_among_the_ids(wire: Wire) -> None:
    plain = await wire.ask(input_ids=PROMPT, sampling_params={**GREEDY, "ignore_eos": True})
    ids = plain["output_ids"]
    stop = ids[1]
    end = ids.index(stop) + 1
    params = {**GREEDY, "stop_token_ids": [stop]}
    reply = await wire.ask(input_ids=PROMPT, sampling_params=params)
    assert reply["output_ids"] == ids[:end]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert reply["meta_info"]["completion_tokens"] == end
    shorter = {**GREEDY, "max_new_tokens": end - 1}
    before = await wire.ask(input_ids=PROMPT, sampling_params=shorter)
    assert reply["text"] == before["text"]


async def a_stop_string_is_cut_from_the_text_alone(wire: Wire) -> None:
    params = {**GREEDY, "max_new_tokens": 12, "ignore_eos": True}
    plain = await wire.ask(input_ids=PROMPT, sampling_params=params)
    stop = next(char for char in plain["text"][1:] if char.isascii() and char.isprintable())
    reply = await wire.ask(input_ids=PROMPT, sampling_params={**params, "stop": [stop]})
    assert reply["text"] == plain["text"][: plain["text"].index(stop)]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    size = len(reply["output_ids"])
    assert reply["output_ids"] == plain["output_ids"][:size]
    shorter = {**params, "max_new_tokens": size}
    whole = await wire.ask(input_ids=PROMPT, sampling_params=shorter)
    assert stop in whole["text"]


async def logps_are_what_was_drawn_from(wire: Wire) -> None:
    async def gap(temperature: float, **more: Any) -> float:
        params = {"max_new_tokens": 1, "temperature": temperature, "top_k": 2, **more}
        reply = await wire.ask(
            input_ids=PROMPT, sampling_params=params, return_logprob=True, top_logprobs_num=2
        )
        first, second = reply["meta_info"]["output_top_logprobs"][0]
        return float(first[0] - second[0])

    plain = await gap(1.0)
    scaled = plain if wire.is_raw else plain / 2
    assert abs(await gap(2.0) - scaled) < 1e-3


async def a_bias_changes_reported_logps(wire: Wire) -> None:
    async def logp(**more: Any) -> float:
        reply = await wire.ask(
            input_ids=PROMPT,
            sampling_params={"max_new_tokens": 1, "temperature": 1.0, **more},
            return_logprob=True,
            token_ids_logprob=[90, 91],
        )
        row = reply["meta_info"]["output_token_ids_logprobs"][0]
        assert [entry[1] for entry in row] == [90, 91]
        return float(row[1][0])

    assert await logp(logit_bias={"91": 3.0}) > await logp() + 0.5


async def penalties_know_only_their_request(wire: Wire) -> None:
    params = {**GREEDY, "ignore_eos": True, "max_new_tokens": 1}
    first = (await wire.ask(input_ids=PROMPT, sampling_params=params))["output_ids"][0]

    async def next_logp(**more: Any) -> float:
        reply = await wire.ask(
            input_ids=[*PROMPT, first],
            sampling_params={**params, "temperature": 1.0, **more},
            return_logprob=True,
            token_ids_logprob=[first],
        )
        return float(reply["meta_info"]["output_token_ids_logprobs"][0][0][0])

    assert abs(await next_logp(presence_penalty=2.0) - await next_logp()) < 1e-4


async def a_minimum_bars_the_stops(wire: Wire) -> None:
    plain = await wire.ask(input_ids=PROMPT, sampling_params={**GREEDY, "ignore_eos": True})
    stop = plain["output_ids"][0]
    params = {**GREEDY, "stop_token_ids": [stop], "min_new_tokens": 2}
    reply = await wire.ask(input_ids=PROMPT, sampling_params=params)
    assert len(reply["output_ids"]) >= 2
    assert stop not in reply["output_ids"][:2]


async def a_regex_is_obeyed(wire: Wire) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 8, "regex": "[0-9]{3}"}
    reply = await wire.ask(input_ids=PROMPT, sampling_params=params)
    assert len(reply["text"]) == 3
    assert reply["text"].isdecimal()


async def sessions_fork_cut_and_replace(wire: Wire) -> None:
    name = (await wire.post("/open_session", capacity_of_str_len=1000)).json()

    async def go_on(rid: str | None, ids: list[int], **more: Any) -> Any:
        return await wire.ask(
            input_ids=ids, sampling_params=GREEDY, session_params={"id": name, "rid": rid, **more}
        )

    root = await go_on(None, PROMPT)
    rid = root["meta_info"]["id"]
    forks = [await go_on(rid, [90, 91]) for _ in range(2)]
    assert [fork["meta_info"]["prompt_tokens"] for fork in forks] == [25, 25]
    assert forks[0]["output_ids"] == forks[1]["output_ids"]
    assert (await go_on(rid, [90, 91], offset=5))["meta_info"]["prompt_tokens"] == 7
    without = await go_on(rid, [90, 91], drop_previous_output=True)
    assert without["meta_info"]["prompt_tokens"] == 22
    replaced = await go_on(rid, [90, 91], replace=True)
    assert replaced["meta_info"]["prompt_tokens"] == 25
    child = forks[0]["meta_info"]["id"]
    gone = await wire.refusal(
        input_ids=[90], sampling_params=GREEDY, session_params={"id": name, "rid": child}
    )
    assert "Invalid request session id" in gone["error"]["message"]
    assert (await wire.post("/close_session", session_id=name)).status_code == 200
    closed = await wire.refusal(
        input_ids=[90], sampling_params=GREEDY, session_params={"id": name, "rid": rid}
    )
    assert "does not exist" in closed["error"]["message"]


async def it_says_what_it_is(wire: Wire) -> None:
    model = (await wire.client.get("/model_info")).json()
    server = (await wire.client.get("/server_info")).json()
    assert model["is_generation"] is True
    assert isinstance(model["model_path"], str)
    assert server["incremental_streaming_output"] is wire.is_delta
    assert server["enable_deterministic_inference"] in (True, False)
    assert server["enable_priority_scheduling"] is False
    assert server["max_req_input_len"] < server["max_total_num_tokens"]
    loads = (await wire.client.get("/v1/loads")).json()["loads"]
    assert isinstance(loads[0]["num_waiting_reqs"], int)


CHECKS: tuple[Check, ...] = (
    one_is_an_object_many_are_a_list,
    a_batch_times_n_is_ordered_by_item,
    a_batch_may_have_parameters_per_item,
    rids_are_kept_numbered_or_made,
    prompt_logprobs_begin_with_nothing,
    prompt_logprobs_cost_the_cache,
    what_was_drawn_is_cached_too,
    samples_share_their_prompt,
    a_batch_shares_nothing_yet,
    salts_and_keys_part_the_cache,
    streams_are_cumulative_or_deltas,
    an_interval_thins_events_out,
    streams_of_a_batch_have_an_index,
    a_late_refusal_is_an_event,
    an_abort_ends_a_request_with_what_it_has,
    an_abort_takes_longer_rids_along,
    a_prefix_that_is_no_rid_aborts_nothing,
    an_unknown_rid_is_no_error,
    errors_have_two_shapes,
    an_unknown_key_beside_them_is_ignored,
    wrong_requests_are_refused,
    prompts_end_before_the_context,
    flushing_waits_for_nobody,
    a_stop_id_stays_among_the_ids,
    a_stop_string_is_cut_from_the_text_alone,
    logps_are_what_was_drawn_from,
    a_bias_changes_reported_logps,
    penalties_know_only_their_request,
    a_minimum_bars_the_stops,
    a_regex_is_obeyed,
    sessions_fork_cut_and_replace,
    it_says_what_it_is,
)


async def judged_texts_have_one_number(wire: Wire) -> None:
    texts = ["one", "two and more"]
    single = (await wire.post("/classify", text=texts[0])).json()
    assert set(single) >= {"embedding", "meta_info"}
    assert [type(value) for value in single["embedding"]] == [float]
    assert single["meta_info"]["prompt_tokens"] > 0
    batch = (await wire.post("/classify", text=texts)).json()
    assert len(batch) == 2
    assert abs(batch[0]["embedding"][0] - single["embedding"][0]) < 1e-5


async def judged_ids_do_too(wire: Wire) -> None:
    single = (await wire.post("/classify", input_ids=PROMPT)).json()
    batch = (await wire.post("/classify", input_ids=[PROMPT, PROMPT[:5]])).json()
    assert [reply["meta_info"]["prompt_tokens"] for reply in batch] == [20, 5]
    assert abs(batch[0]["embedding"][0] - single["embedding"][0]) < 1e-5


async def a_judge_says_that_it_is_one(wire: Wire) -> None:
    assert (await wire.client.get("/model_info")).json()["is_generation"] is False


JUDGE_CHECKS: tuple[Check, ...] = (
    judged_texts_have_one_number,
    judged_ids_do_too,
    a_judge_says_that_it_is_one,
)
