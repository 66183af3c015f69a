"""What this server can serve: opened engines and judges, and every strategy there is.

A catalog opens everything its settings name and closes all of it again. It knows names and near
matches; requests are made of them in `server.resolve`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from engines.base import Capability, Engine
from reward_models.base import MultifurcationRewardModel, RewardModel
from search import plugins
from search.errors import MissingRewardModel, PluginError, StrategyNotFound
from search.registry import needs_next_rewards
from server.errors import ModelNotFound, RewardModelNotFound, SettingsError, near
from server.metrics import Stats
from server.settings import ModelSettings, Settings
from stores.base import Store

log = logging.getLogger("bough.server")

SUFFIX: Final = ":"
"""Between a model's id and a strategy's name."""


@dataclass(frozen=True)
class Served:
    """One model on the wire."""

    model_id: str
    engine: Engine
    settings: ModelSettings
    created: int


@dataclass
class Catalog:
    """Models, judges and strategies by name; the first model is the default one.

    `gone` holds the ids of models and judges that said they are closed while they were needed.
    """

    models: Mapping[str, Served]
    judges: Mapping[str, RewardModel]
    strategies: Mapping[str, Any]
    gone: set[str] = field(default_factory=set)

    def find(self, name: str) -> tuple[Served, str | None]:
        """The model called `name`, or the model and strategy that ``model:strategy`` names.

        Raises:
            ModelNotFound: Neither reading gives a model.
            StrategyNotFound: The suffix is no strategy.
        """
        if (served := self.models.get(name)) is not None:
            return served, None
        base, separator, strategy = name.rpartition(SUFFIX)
        if not separator or base not in self.models:
            raise ModelNotFound(name, self.models)
        return self.models[base], self.strategy(strategy)

    def strategy(self, name: str) -> str:
        """`name`, if there is such a strategy.

        Raises:
            StrategyNotFound: There is none.
        """
        if name not in self.strategies:
            raise StrategyNotFound(name[:100], self.strategies)
        return name

    def judge(self, name: str, param: str = "bough.reward_model") -> RewardModel:
        """The judge called `name`, which the request says in `param`.

        Raises:
            RewardModelNotFound: There is none.
        """
        if name not in self.judges:
            raise RewardModelNotFound(name, self.judges, param)
        return self.judges[name]

    def usable(self) -> dict[str, Any]:
        """Every strategy that can be imported, by name; the others are logged."""
        found = {}
        for name in self.strategies:
            try:
                found[name] = self.strategies[name]
            except PluginError as err:
                log.warning("%s", err)
        return found

    def carried_by(self, served: Served) -> list[str]:
        """Strategies that this model's engine has the capabilities for.

        One that reads the rewards of next tokens also needs a judge of the model's vocabulary.
        """
        able = set(served.engine.info.capabilities)
        if Capability.TOKENS in able:  # as search sees it: whoever continues tokens continues text
            able.add(Capability.CONTINUE_TEXT)
        return [
            name
            for name, kind in self.usable().items()
            if kind.requires <= able and (not needs_next_rewards(kind) or self.fitting(served))
        ]

    def carriers_of(self, strategy: str) -> list[str]:
        """Ids of the models that carry a strategy."""
        return [name for name, served in self.models.items() if strategy in self.carried_by(served)]

    def fitting(self, served: Served) -> list[str]:
        """Ids of the judges that value every next token of this model's vocabulary."""
        wanted = served.engine.info.tokenizer_hash
        return [
            name
            for name, judge in self.judges.items()
            if isinstance(judge, MultifurcationRewardModel) and judge.info.tokenizer_hash == wanted
        ]

    def usual_judge(self, served: Served, strategy: str) -> str | None:
        """The judge of a request that names none.

        It is the model's own; where the strategy needs one that values every next token and the
        model's does not, the only one that fits.

        Raises:
            MissingRewardModel: Several fit.
        """
        own = served.settings.reward_model
        if not needs_next_rewards(self.strategies[strategy]):
            return own
        fitting = self.fitting(served)
        if own in fitting or not fitting:
            return own
        if len(fitting) > 1:
            names = ", ".join(map(repr, fitting))
            raise MissingRewardModel(strategy, f"one that values every next token; {names} fit")
        return fitting[0]

    def stats(self) -> dict[str, Stats]:
        """Stats of every engine and judge by id; ids are unique across both."""
        engines: dict[str, Stats] = {
            name: served.engine.stats() for name, served in self.models.items()
        }
        return engines | {name: judge.stats() for name, judge in self.judges.items()}


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Catalog]:
    """Open all that `settings` names; what was opened is closed at the end, or when opening fails.

    Raises:
        SettingsError: A kind or a strategy that no plugin provides, or one id for a model and a
            judge.
        ModelLoadError: A model that cannot be served.
        RewardLoadError: A reward model that cannot be served.
    """
    strategies = plugins.load("bough.strategies")
    _check(settings, strategies)
    async with AsyncExitStack() as stack:
        models: dict[str, Served] = {}
        for name, model in settings.models.items():
            open_engine = _plugin("bough.engines", model.engine.kind, f"models.{name}.engine.kind")
            engine = open_engine(name, model.engine.model, model.engine.options)
            stack.push_async_callback(engine.aclose)
            models[name] = Served(name, engine, model, int(time.time()))
        judges: dict[str, RewardModel] = {}
        for name, judge in settings.reward_models.items():
            open_judge = _plugin("bough.reward_models", judge.kind, f"reward_models.{name}.kind")
            judges[name] = open_judge(name, judge.model, judge.options)
            stack.push_async_callback(judges[name].aclose)
        yield Catalog(models, judges, strategies)


def open_store(settings: Settings) -> Store:
    """The store at `store.url`; its scheme names the plugin.

    Raises:
        SettingsError: No plugin for this scheme.
        StoreConfigError: The URL is wrong.
    """
    url = settings.store.url.get_secret_value()
    scheme = url.partition(":")[0] or "memory"
    kind = "redis" if scheme in ("rediss", "unix") else scheme
    opened_store: Store = _plugin("bough.stores", kind, "store.url")(url)
    return opened_store


def _plugin(group: str, kind: str, setting: str) -> Any:
    known = plugins.load(group)
    if kind not in known:
        raise SettingsError(f"{setting} is {kind[:40]!r}{near(kind, known)}")
    return known[kind]


def _check(settings: Settings, strategies: Mapping[str, Any]) -> None:
    if not settings.models:
        raise SettingsError("there is no model to serve: set engine.kind and engine.model")
    both = sorted(set(settings.models) & set(settings.reward_models))
    if both:
        raise SettingsError(f"{both[0]!r} is both a model and a reward model: rename one")
    for name, model in settings.models.items():
        if model.strategy not in strategies:
            raise SettingsError(
                f"models.{name}.strategy is {model.strategy!r}{near(model.strategy, strategies)}"
            )
