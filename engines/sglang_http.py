"""Opens the `sglang` engine: asks every worker what it is, and reads the model's directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from engines.base import Capability, EngineInfo
from engines.errors import ModelLoadError
from engines.sglang_block_engine import SGLangBlockEngine
from engines.sglang_blocks import denoiser_info, family_of
from engines.sglang_child import Terms
from engines.sglang_discovery import WorkerInfo, discover
from engines.sglang_engine import SGLangEngine
from engines.sglang_model import LocalModel, read_model
from engines.sglang_options import SGLangOptions, WorkerOptions, parse
from engines.sglang_pool import Pool
from engines.sglang_wire import NotTaken
from engines.sglang_worker import Worker

log = logging.getLogger("bough.engines.sglang")

_POLL_S: Final = 0.5
_KEEP_ALIVE_S: Final = 2.0
"""Shorter than the server's own five seconds: it never hangs up on a connection in use."""

_CAPABILITIES: Final = frozenset(
    {
        Capability.TOKENS,
        Capability.LOGPROBS,
        Capability.NEXT_LOGPROBS,
        Capability.SCHEDULE,
        Capability.CONSTRAINT,
    }
)

_BLOCK_CAPABILITIES: Final = frozenset({Capability.DENOISE})


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> SGLangEngine:
    """The engine for settings; waits for the workers' first answer.

    Args:
        model_id: The id on the wire.
        model: The worker's address, or several with commas between them.
        options: See `SGLangOptions`.

    Raises:
        ModelLoadError: An option is wrong, no worker answers, one does not generate, or the
            model's directory is not here.
    """
    chosen, urls = parse(SGLangOptions, model, options)
    infos = find_workers(urls, chosen)
    known = [info for info in infos if info is not None]
    for url, info in zip(urls, infos, strict=True):
        if info is not None and not info.is_generation:
            raise ModelLoadError(
                url,
                "this worker was started with --is-embedding and cannot generate: it is a judge",
            )
    if len(paths := {info.model_path for info in known}) > 1:  # one model may lie in two places
        log.warning("the workers of %r serve %s", model_id, ", ".join(sorted(paths)))
    if len(algorithms := {info.algorithm for info in known}) > 1:
        raise ModelLoadError(
            ", ".join(urls),
            f"the workers denoise differently ({', '.join(sorted(map(repr, algorithms)))}): start "
            "them all with the same --dllm-algorithm",
        )
    directory = chosen.tokenizer or Path(known[0].model_path)
    local = read_model(directory)
    engine_info = _info(model_id, local, known, chosen)
    client = new_client(urls, chosen)
    workers = [
        Worker(model_id, url, chosen, client, info) for url, info in zip(urls, infos, strict=True)
    ]
    pool = Pool(model_id, workers, chosen)
    terms = Terms(
        info=engine_info,
        pool=pool,
        schedule_pieces=chosen.schedule_pieces,
    )
    if not known[0].algorithm:
        return SGLangEngine(engine_info, local, pool, client, terms)
    family = family_of(urls[0], local.architecture, known[0], chosen.block_size)
    denoiser = denoiser_info(engine_info, family, known[0])
    return SGLangBlockEngine(engine_info, local, pool, client, terms, denoiser)


def find_workers(urls: Sequence[str], options: WorkerOptions) -> list[WorkerInfo | None]:
    """What each worker says of itself; None for one that does not answer in time.

    Raises:
        ModelLoadError: None answers, or one is no SGLang.
    """
    deadline = time.monotonic() + options.startup_timeout_s
    found: dict[str, WorkerInfo] = {}
    while True:
        missing: list[str] = []
        for url in urls:
            if url not in found:
                try:
                    found[url] = discover(url, options)
                except NotTaken as err:
                    missing.append(str(err))
        if len(found) == len(urls) or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    if not found:
        raise ModelLoadError(
            missing[0],
            "no SGLang worker answers: start it first, or raise the option startup_timeout_s",
        )
    return [found.get(url) for url in urls]


def new_client(urls: Sequence[str], options: WorkerOptions) -> httpx.AsyncClient:
    """A client without a limit of connections: every running branch holds one.

    Certificates are read only where an address needs them; that takes a while.
    """
    return httpx.AsyncClient(
        verify=any(url.startswith("https:") for url in urls),
        headers=options.headers,
        timeout=httpx.Timeout(options.idle_timeout_s, connect=options.connect_timeout_s, pool=None),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_ALIVE_S
        ),
    )


def _info(
    model_id: str, local: LocalModel, known: Sequence[WorkerInfo], options: SGLangOptions
) -> EngineInfo:
    seeded = all(worker.is_seeded for worker in known)
    steps = options.step_delimiters
    able = _BLOCK_CAPABILITIES if known[0].algorithm else _CAPABILITIES
    return EngineInfo(
        model_id=model_id,
        context_tokens=min(worker.max_prompt_tokens for worker in known),
        vocab_size=local.vocab_size,
        eos_ids=local.eos_ids,
        tokenizer_hash=local.tokenizer.hash,
        parameters=0,
        capabilities=able | ({Capability.SEED} if seeded else set()),
        step_delimiters=local.step_delimiters if steps is None else steps,
        max_step_tokens=options.max_step_tokens or local.max_step_tokens,
    )
