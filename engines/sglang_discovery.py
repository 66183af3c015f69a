"""What an SGLang worker is, asked of itself.

A worker has one role. A /generate sent to a worker started with ``--is-embedding`` ends its whole
process, so the role is read before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import httpx

from engines.errors import EngineError, ModelLoadError
from engines.sglang_options import WorkerOptions
from engines.sglang_wire import NotTaken, message_in, parsed, raise_for, top_logps

SAMPLED: Final = "SampledConfidence"
"""The block-diffusion algorithm that reads temperature and seed: `engines.sglang_block_sampler`."""

_SAME_NATS: Final = 1e-3


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself.

    Attributes:
        model_path: Directory or name of its model.
        is_generation: Whether it generates; otherwise it judges or embeds.
        max_prompt_tokens: The longest prompt that it takes.
        cache_tokens: Tokens that its cache holds.
        is_delta: Whether its streams hold deltas.
        is_seeded: Whether it honours seeds.
        takes_priority: Whether it schedules by priority.
        is_low_first: Whether smaller priorities run first.
        has_raw_logps: Whether its logps of drawn tokens are those at temperature 1.
        algorithm: Of its block diffusion; empty where it draws one token after the other.
        page_size: Tokens of a page of its cache.
    """

    model_path: str
    is_generation: bool
    max_prompt_tokens: int
    cache_tokens: int
    is_delta: bool
    is_seeded: bool
    takes_priority: bool
    is_low_first: bool
    has_raw_logps: bool
    algorithm: str = ""
    page_size: int = 1


def discover(url: str, options: WorkerOptions) -> WorkerInfo:
    """Ask a worker what it is; blocks. A generator also draws two tokens for it.

    Raises:
        NotTaken: Nobody answers, or not yet.
        ModelLoadError: It answers, but not as SGLang does.
    """
    timeout = httpx.Timeout(options.idle_timeout_s, connect=options.connect_timeout_s)
    try:
        with httpx.Client(
            base_url=url, timeout=timeout, headers=options.headers, verify=url.startswith("https:")
        ) as client:
            model = _get(client, "/model_info")
            server = _get(client, "/server_info")
            is_generation = bool(model["is_generation"])
            algorithm = str(server.get("dllm_algorithm") or "")
            is_seeded = bool(server.get("enable_deterministic_inference"))
            return WorkerInfo(
                model_path=str(model["model_path"]),
                is_generation=is_generation,
                max_prompt_tokens=int(server["max_req_input_len"]) - 1,
                cache_tokens=int(server["max_total_num_tokens"]),
                is_delta=bool(server.get("incremental_streaming_output")),
                is_seeded=algorithm == SAMPLED if algorithm else is_seeded,
                takes_priority=bool(server.get("enable_priority_scheduling")),
                is_low_first=bool(server.get("schedule_low_priority_values_first")),
                has_raw_logps=is_generation and not algorithm and _has_raw_logps(client),
                algorithm=algorithm,
                page_size=int(server.get("page_size") or 1),
            )
    except httpx.HTTPError as err:
        raise NotTaken(f"{url}: {type(err).__name__}: {err}", is_gone=True) from err
    except (KeyError, TypeError, ValueError) as err:
        raise ModelLoadError(url, f"what answers there is no SGLang server: {err!r}") from err
    except EngineError as err:
        raise ModelLoadError(url, str(err)) from err


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    reply = client.get(path)
    raise_for(reply.status_code, message_in(reply.content), path)
    return parsed(reply.content)


def _has_raw_logps(client: httpx.Client) -> bool:
    """Whether a drawn token's logp is the model's own, not that at the request's temperature.

    It depends on an environment variable of the server's, SGLANG_RETURN_ORIGINAL_LOGPROB, that no
    route shows. The two likeliest tokens lie half as far apart at temperature 2.
    """
    gaps = []
    for temperature in (1.0, 2.0):
        sampling = {"max_new_tokens": 1, "temperature": temperature, "top_k": 2}
        body = {
            "input_ids": [0, 1],
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": 2,
        }
        reply = client.post("/generate", json=body)
        raise_for(reply.status_code, message_in(reply.content), "/generate")
        (first, second) = top_logps(parsed(reply.content)["meta_info"]["output_top_logprobs"][0])
        gaps.append(first[1] - second[1])
    return gaps[0] > 4 * _SAME_NATS and abs(gaps[0] - gaps[1]) < _SAME_NATS
