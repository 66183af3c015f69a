"""Where trees of denoising rollouts wait for the next request that asks the same.

A tree belongs to a tenant, a model, a prompt, a judge and a chain: everything that its states and
rewards depend on. How it is grown further (sharpness, widening, width) is the next request's own
business. A store that does not answer costs the reuse, never the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any, Final

from search.chains import Chain, Restored
from search.diffusion_tree import revalue
from search.kept_trees import TTL_S, merged, packed, unpacked
from search.rollouts import Rollouts
from search.search import Search
from stores.base import Store
from stores.errors import StoreUnavailable, ValueTooLarge
from stores.merging import merge_blob

log = logging.getLogger("bough.search")

SAVE_S: Final = 5.0
"""The longest that storing a tree takes; a run that is cancelled ends that much later at most."""


class TreeShelf:
    """The stored tree of one request.

    Args:
        search: Has the store.
        rollouts: The request's tree; still empty.
    """

    def __init__(self, search: Search, rollouts: Rollouts) -> None:
        self._search = search
        self._rollouts = rollouts
        self._key = key_of(search, rollouts.chain, rollouts.levels, rollouts.aggregate)
        self._version = 0

    async def load(self) -> None:
        """Go on with what is stored, if anything is."""
        search, rollouts = self._search, self._rollouts
        if search.store is None:
            return
        try:
            blob = await search.store.get_blob(self._key, tenant=search.tenant)
        except StoreUnavailable as err:
            self._without(err)
            return
        kept = None if blob is None else unpacked(blob.data)
        if blob is None or kept is None or kept.root.state != rollouts.root.state:
            return
        self._version = blob.version
        revalue(kept.root, rollouts.rules)
        nodes = [node for node in kept.root.nodes if node is not kept.root]
        places = {node: at for at, node in enumerate(nodes)}
        restored = [
            Restored(
                None if node.parent is None else places.get(node.parent),
                node.state,
                rollouts.chain.steps - (0 if node.is_end else rollouts.levels[node.level]),
                node.value if node.is_end else None,
            )
            for node in nodes
        ]
        branches = await search.restore(
            restored, rollouts.chain, nfe=kept.nfe, rollouts=kept.root.visits - 1
        )
        rollouts.adopt(kept.root, dict(zip(nodes, branches, strict=True)))

    async def save(self) -> None:
        """Store the tree as it is now, with what others stored in the meantime.

        What is begun is ended within `SAVE_S`, also where the run is cancelled in the middle of it.
        """
        if self._search.store is None or not self._rollouts.landed:
            return
        await asyncio.shield(asyncio.create_task(self._save(self._search.store)))

    async def _save(self, store: Store) -> None:
        search, rollouts = self._search, self._rollouts
        data = packed(rollouts.root)

        def with_ours(theirs: bytes) -> bytes:
            return merged(theirs, rollouts.landed, rollouts.rules) or data

        try:
            async with asyncio.timeout(SAVE_S):
                is_written = await merge_blob(
                    store,
                    self._key,
                    data,
                    tenant=search.tenant,
                    version=self._version,
                    merged=with_ours,
                    ttl_s=TTL_S,
                )
        except (StoreUnavailable, ValueTooLarge, TimeoutError) as err:
            self._without(err)
            return
        if not is_written:
            log.info("a tree was not stored: others wrote it first time and again")

    def _without(self, err: Exception) -> None:
        self._search.did_without("trees")
        log.warning("the store of trees failed and was done without: %r", err)


def key_of(search: Search, chain: Chain, levels: tuple[int, ...], aggregate: str | None) -> str:
    """A digest of everything that states and rewards depend on."""
    engine, judge, how = search.engine, search.judge, search.sampling
    parts = {
        "model": (engine.model_id, engine.tokenizer_hash, engine.parameters),
        "judge": None if judge is None else (judge.model_id, judge.kind, judge.parameters),
        "aggregate": aggregate,
        "start": chain.start,
        "prompt": chain.prompt_tokens,
        "messages": [dict(one) for one in search.messages],
        "kernel": asdict(chain.kernel),
        "temperature": chain.temperature,
        "levels": levels,
        "ends": (how.stop, how.stop_token_ids, how.max_tokens, how.min_tokens),
    }
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return "tree:" + hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)
