"""What the operator may set, and where each value came from.

One dotted name everywhere: ``--limits.max_n 8``, ``BOUGH_LIMITS__MAX_N=8``, ``[limits] max_n = 8``.
Precedence: flag > environment > TOML file > default. Nothing else in bough reads the environment.
Options of a single request are no settings: they are the strategy's parameters, checked on arrival
and capped by `limits`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from models.registry import bundled, describe
from server.errors import SettingsError, near

PREFIX: Final = "BOUGH_"
CONFIG_FILE: Final = "bough.toml"
CONFIG_VARIABLE: Final = "BOUGH_CONFIG"
_FROZEN: Final = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(BaseModel):
    """Which engine serves a model."""

    model_config = _FROZEN
    kind: str = Field(default="embedded", description="Engine plugin: embedded, echo, …")
    model: str = Field(default="", description="A local model directory, or the id at an upstream")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of this engine kind, as NAME=VALUE or JSON"
    )


class ModelSettings(BaseModel):
    """One model on the wire."""

    model_config = _FROZEN
    engine: EngineSettings = Field(default_factory=EngineSettings)
    reward_model: str | None = Field(default=None, description="Judge where a request names none")
    strategy: str = Field(default="single", description="Strategy where a request names none")
    params: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of that default strategy"
    )
    task: str | None = Field(
        default=None, description="What the model was made for; shown in /v1/models"
    )


class RewardModelSettings(BaseModel):
    """One judge on the wire."""

    model_config = _FROZEN
    kind: str = Field(
        default="process", description="Reward model plugin: process, constant, verifier, …"
    )
    model: str = Field(default="", description="A local directory, or the id at an upstream")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of this kind")


class LimitSettings(BaseModel):
    """What one request, and all together, may take."""

    model_config = _FROZEN
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, description="Largest body, bytes")
    max_n: int = Field(default=64, ge=1, description="Most answers returned to one request (n)")
    max_width: int = Field(
        default=256,
        ge=1,
        description="Largest bough.params.width; a wider default is lowered",
    )
    max_candidates: int = Field(default=4096, ge=1, description="Most candidates one run may make")
    max_generated_tokens: int = Field(default=1_000_000, ge=1, description="Most tokens of one run")
    max_reward_calls: int = Field(default=100_000, ge=0, description="Most judgements of one run")
    max_run_s: float = Field(
        default=600.0, gt=0, description="Longest run, seconds; waiting for a place does not count"
    )
    max_concurrent_runs: int = Field(default=64, ge=1, description="Runs going at once")
    max_queued_runs: int = Field(
        default=256, ge=0, description="Runs waiting for a place; more get 429"
    )


class StoreSettings(BaseModel):
    """Where replicas share what they share."""

    model_config = _FROZEN
    url: SecretStr = Field(
        default=SecretStr("memory://"), description="memory:// or redis://[:password@]host:port/db"
    )


class CacheSettings(BaseModel):
    """Whether equal requests share one answer."""

    model_config = _FROZEN
    responses: bool = Field(
        default=False, description="Answer repeated reproducible requests from store"
    )
    ttl_s: float = Field(default=3600.0, gt=0, description="How long an answer is kept, seconds")


class DraftSettings(BaseModel):
    """What drafters learn from each other's replicas."""

    model_config = _FROZEN
    share_s: float = Field(
        default=30.0,
        ge=0,
        description="How often lessons go to and come from a shared store, seconds; 0 never",
    )
    ttl_s: float = Field(
        default=86400.0, gt=0, description="How long lessons are kept that nobody renews, seconds"
    )


class StreamSettings(BaseModel):
    """Server-sent events."""

    model_config = _FROZEN
    heartbeat_s: float = Field(
        default=5.0, gt=0, description="Longest silence on a stream, seconds"
    )


class Settings(BaseSettings):
    """All settings. Built directly it reads nothing but its arguments; see `load`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one"
    )
    engine: EngineSettings | None = Field(
        default=None, description="Shorthand for serving one model instead of [models.ID]"
    )
    models: dict[str, ModelSettings] = Field(
        default_factory=dict, description="Models by id, the default first; none: all bundled ones"
    )
    reward_models: dict[str, RewardModelSettings] = Field(
        default_factory=dict, description="Judges by id"
    )
    limits: LimitSettings = Field(default_factory=LimitSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    drafts: DraftSettings = Field(default_factory=DraftSettings)
    stream: StreamSettings = Field(default_factory=StreamSettings)
    shutdown_grace_s: int = Field(
        default=5, ge=1, description="Seconds that requests get to end before they are cancelled"
    )
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error|critical)$",
        description="Least level logged",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only arguments: `load` merges the sources, so that it knows where a value came from."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _fill_models(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Expand the shorthand; without any model, serve all bundled ones."""
        if values.get("models"):
            if values.get("engine"):
                raise ValueError("engine is shorthand for one model; give it or models, not both")
            return values
        if values.get("engine"):
            engine = EngineSettings.model_validate(values["engine"])
            return {**values, "models": {_model_id(engine): {"engine": engine}}}
        models, judges = _bundled()
        return {**values, "models": models, "reward_models": judges | _dict(values)}

    @model_validator(mode="after")
    def _check_judges(self) -> Settings:
        for model_id, model in self.models.items():
            if model.reward_model is not None and model.reward_model not in self.reward_models:
                raise ValueError(
                    f"models.{model_id}.reward_model is {model.reward_model!r}"
                    + near(model.reward_model, self.reward_models)
                )
        return self


@dataclass(frozen=True)
class Loaded:
    """Effective settings, and the source of each value that is not a default, by dotted name."""

    settings: Settings
    origins: Mapping[str, str]


def add_flags(parser: argparse.ArgumentParser) -> CliSettingsSource[Any]:
    """Give `parser` a dotted flag per setting, and ``--config``."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"TOML file (default: {CONFIG_FILE} if there is one)"
    )
    return CliSettingsSource(Settings, root_parser=parser, cli_hide_none_type=True)


def load(
    flags: CliSettingsSource[Any] | None = None, parsed: argparse.Namespace | None = None
) -> Loaded:
    """Merge flags, environment and file over the defaults.

    Raises:
        SettingsError: An unknown name or a bad value, with where it came from.
    """
    try:
        layers = [*_file_layer(parsed), ("environment", _environment())]
        if flags is not None and parsed is not None:
            given = flags(parsed_args=parsed)()
            layers.append(("flag", _with_scalars(given)))
    except (SourceError, ValidationError) as err:
        raise SettingsError(str(err).splitlines()[0]) from err
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        merged = _merge(merged, values)
        origins.update((name, origin) for name, _ in leaves(values))
    try:
        settings = Settings(**merged)
    except ValidationError as err:
        raise SettingsError(_explain(err, origins)) from err
    return Loaded(settings, origins | _of_shorthand(settings, origins))


def _of_shorthand(settings: Settings, origins: Mapping[str, str]) -> dict[str, str]:
    """Whoever gave the shorthand `engine` gave the one model that it stands for."""
    if settings.engine is None:
        return {}
    (model_id,) = settings.models
    return {
        f"models.{model_id}.{name}": origin
        for name, origin in origins.items()
        if f"{name}.".startswith("engine.")
    }


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested mappings that is not itself a mapping."""
    for name, value in values.items():
        dotted = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def _file_layer(parsed: argparse.Namespace | None) -> list[tuple[str, dict[str, Any]]]:
    named = getattr(parsed, "config", None) or os.environ.get(CONFIG_VARIABLE)
    path = Path(named or CONFIG_FILE)
    if not path.is_file():
        if named:
            raise SettingsError(f"{path}: no such file")
        return []
    try:
        return [(str(path), TomlConfigSettingsSource(Settings, path)())]
    except (ValueError, OSError) as err:
        raise SettingsError(f"{path}: {err}") from err


def _environment() -> dict[str, Any]:
    known = {*Settings.model_fields, CONFIG_VARIABLE.removeprefix(PREFIX).lower()}
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            field = name[len(PREFIX) :].split("__")[0].lower()
            if field not in known:
                raise SettingsError(f"environment variable {name} sets nothing{near(field, known)}")
    return EnvSettingsSource(Settings)()


def _with_scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Read NAME=VALUE options of the engine as numbers and booleans where they look like it."""
    engine = values.get("engine")
    if not isinstance(engine, dict) or not isinstance(engine.get("options"), dict):
        return values
    options = {name: _scalar(value) for name, value in engine["options"].items()}
    return {**values, "engine": {**engine, "options": options}}


def _scalar(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _explain(err: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in err.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in problem["loc"])
        # `port` was written by whoever wrote the longest name that it begins with
        said = [origin for known, origin in origins.items() if f"{known}.".startswith(f"{name}.")]
        where = f" (from {said[0]})" if said else ""
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name or 'settings'}: {message}{where}")
    return "; ".join(lines)


def _dict(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values.get("reward_models") or {})


def _model_id(engine: EngineSettings) -> str:
    """The directory's own name for local models, the id itself for upstream ones."""
    path = Path(engine.model)
    is_local = bool(engine.model) and path.is_dir()
    return (path.resolve().name if is_local else engine.model) or engine.kind


_ENGINES: Final = {"generator": "embedded", "diffusion": "diffusion"}
"""What serves a bundled model, by the kind that its `bough.json` says."""


def _bundled() -> tuple[dict[str, Any], dict[str, Any]]:
    """Bundled models and judges as settings, by id; the only judge of a task is its default."""
    models: dict[str, Any] = {}
    judges: dict[str, Any] = {}
    judged: dict[str, str | None] = {}
    for name, path in bundled().items():
        about = describe(path)
        kind = about.get("kind", "generator")
        if kind in _ENGINES:
            engine = {"kind": _ENGINES[kind], "model": str(path)}
            models[name] = {"engine": engine, "task": about.get("task")}
            models[name]["reward_model"] = about.get("reward_model")
        else:
            judges[name] = {"kind": kind, "model": str(path)}
            if kind != "multifurcation":  # of tokens: `Catalog.usual_judge` finds it
                judged[name] = about.get("task")
    for model in models.values():
        own = model["reward_model"]
        if own is not None and own not in judges:
            judges[own] = {"kind": own}  # a judge without files goes by its kind
        usual = [name for name, task in judged.items() if task and task == model["task"]]
        if len(usual) == 1:
            model["reward_model"] = model["reward_model"] or usual[0]
    return models, judges
