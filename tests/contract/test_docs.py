"""The documentation names what there is: links, errors, metrics, settings, strategies, routes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel

from docs.examples.first_good import FirstGood
from engines.base import Capability
from engines.openai_dialects import DIALECTS
from engines.openai_options import OpenAIOptions
from engines.sglang_options import SGLangOptions
from loadtests.driver import _parser as driver_parser
from reward_models.http import HttpOptions
from reward_models.judge import JudgeOptions
from search.conformance import CHECKS, Check, Subject
from search.plugins import load
from server import errors, wire
from server.app import create_app
from server.metrics import Gauges, Metrics
from server.settings import Settings
from server.wire import Bough, Budget, ChatRequest, Message, Return, Schedule, StreamOptions
from tests.api.harness import echo_settings
from tests.contract.test_strategies import BRIEF, judge, steps
from tests.toy_engine import ToyEngine, ToyJudge

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples" / "first_good.py"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def code_words(text: str) -> set[str]:
    """Everything a page sets in code, cut at brackets, blanks and commas."""
    return {word for code in _CODE.findall(text) for word in re.split(r"[\s,()\[\]{}]+", code)}


def prose(path: Path) -> str:
    return _BLOCK.sub("", path.read_text(encoding="utf-8"))


def blocks(language: str) -> list[Any]:
    found = []
    for path in PAGES:
        for kind, body in _BLOCK.findall(path.read_text(encoding="utf-8")):
            if kind == language:
                found.append(pytest.param(body, id=f"{path.name}-{len(found)}"))
    return found


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    plain = (heading.lower().replace("`", "") for heading in _HEADING.findall(prose(path)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    linked = {
        (DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(page("README.md"))
    }
    missing = [path.name for path in DOCS.rglob("*.md") if path.resolve() not in linked]
    assert missing == ["README.md"]


@pytest.mark.parametrize("body", blocks("python"))
def test_python_compiles(body: str) -> None:
    compile(body, "page", "exec")


@pytest.mark.parametrize("body", blocks("toml"))
def test_toml_fits_the_settings(body: str) -> None:
    values = tomllib.loads(body)
    if "models" in values:
        Settings(**values)


def documented_errors() -> dict[str, int]:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page("wire.md"), re.MULTILINE)
    return {code: int(status) for status, code in rows}


def test_every_error_code_is_documented_with_its_status() -> None:
    said = documented_errors()
    fixed = {row.code: row.status for row in errors.TABLE.values() if isinstance(row.code, str)}
    assert {code: said.get(code) for code in fixed} == fixed
    sources = "".join(path.read_text() for path in sorted((ROOT / "server").glob("*.py")))
    raised = set(re.findall(r'\bcode ?= ?"(\w+)"', sources))
    routes = {"not_found", "method_not_allowed", "invalid_type", "invalid_value"}
    assert "invalid_json" in raised
    assert raised <= set(said)
    assert set(said) == set(fixed) | raised | routes


def metric_names() -> Iterator[str]:
    """Names as /metrics prints them."""
    metrics = Metrics()
    gauges: list[Metric] = list(Gauges(lambda: {}, lambda: {}).collect())
    for family in [*metrics.registry.collect(), *gauges]:
        yield f"{family.name}_total" if family.type == "counter" else family.name


def test_every_metric_is_documented() -> None:
    rows = set(re.findall(r"^\| `(bough_\w+)` \|", page("operations.md"), re.MULTILINE))
    assert rows == set(metric_names())
    assert len(rows) > 10


def test_every_failure_of_the_store_is_documented() -> None:
    sources = "".join(
        path.read_text() for folder in ("server", "search") for path in (ROOT / folder).glob("*.py")
    )
    counted = re.findall(r'(?:store_errors\.labels|_?d(?:id|one)_without)\("(\w+)"', sources)
    said = code_words(row(page("operations.md"), "`bough_store_errors_total`"))
    assert said == {"bough_store_errors_total", "what", *counted}
    assert {"cache_get", "run_events", "trees", "drafts"} <= said


def test_every_setting_is_documented() -> None:
    rows = {row.split(".ID.")[-1] for row in re.findall(r"^\| `(.+?)` ", page("settings.md"), re.M)}
    for name in Settings.model_fields:
        assert any(row == name or row.startswith(f"{name}.") for row in rows), name


def test_every_driver_option_is_documented() -> None:
    options = {
        option
        for action in driver_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    } - {"--help", "--url"}
    assert options <= code_words(page("operations.md"))


def section(text: str, title: str) -> str:
    _, _, rest = text.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def documented_parameters(name: str) -> dict[str, str]:
    """Default by parameter, those of the strategy that the section builds on included."""
    text = section(page("strategies.md"), name)
    own = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))
    base = re.search(r"^Parameters are those of `(\w+)`, and:", text, re.MULTILINE)
    return {**(documented_parameters(base[1]) if base else {}), **own}


@pytest.mark.parametrize("name", list(load("bough.strategies")))
def test_every_strategy_parameter_is_documented_with_its_default(name: str) -> None:
    rows = documented_parameters(name)
    models = load("bough.strategies")[name].Params.model_fields
    fields = {field.alias or title: field for title, field in models.items()}
    assert set(rows) == set(fields)
    for parameter, field in fields.items():
        said = rows[parameter].strip("`")
        if field.default is not None:
            default = field.default
            expected = str(default).lower() if isinstance(default, bool) else str(default)
            assert said == expected, parameter


def test_every_request_field_is_documented() -> None:
    words = code_words(page("wire.md"))
    parts = {"": ChatRequest, "stream_options.": StreamOptions, "budget.": Budget}
    whole = {"bough", "budget", "return", "stream_options"}  # their own fields are listed
    for above, model in (parts | {"return.": Return}).items():
        assert {f"{above}{name}" for name in model.model_fields} - whole <= words
    for model in (Bough, Message, Schedule):
        names = {field.alias or name for name, field in model.model_fields.items()}
        assert names - whole <= words


def row(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return found


def test_ignored_and_refused_fields_are_told_apart() -> None:
    assert set(wire.IGNORED) <= code_words(row(page("wire.md"), "without effect"))
    assert set(wire.HARMLESS) <= code_words(row(page("wire.md"), "refused"))


def test_every_route_is_documented() -> None:
    listed = re.findall(r"`(?:GET |POST )?(/[^`]*)`", section(page("wire.md"), "Routes"))
    said = {re.sub(r"\{.*?\}", "{}", path.removesuffix("/…")) for path in listed}
    outside_the_schema = {"/", "/ui", "/metrics", "/openapi.json"}
    routes = {*create_app(echo_settings()).openapi()["paths"], *outside_the_schema}
    assert said == {re.sub(r"\{.*?\}", "{}", path) for path in routes}


def test_engine_options_are_documented() -> None:
    runtime = pytest.importorskip("engines.embedded.runtime", reason="needs torch")
    options = set(runtime.RuntimeOptions.__dataclass_fields__)
    assert options <= code_words(page("engine.md"))


def test_the_table_of_engines_says_what_they_declare() -> None:
    from engines import sglang_http, vllm_async
    from engines.echo import open_engine as open_echo
    from engines.openai_http import open_engine as open_openai

    embedded = pytest.importorskip("engines.embedded.engine", reason="needs torch")
    stated = {"base_url": "http://x/v1", "dialect": "vllm", "context_tokens": 9}
    able = {
        "embedded": embedded._CAPABILITIES,
        "vllm": vllm_async._capabilities(has_tools=False),
        "sglang": sglang_http._CAPABILITIES,
        "openai": open_openai(
            "m", "m", {**stated, "capabilities": [], "mode": "chat"}
        ).info.capabilities,
        "echo": open_echo("m", "", {}).info.capabilities,
    }
    may = {
        "vllm": vllm_async._capabilities(has_tools=True, has_drafter=True),
        "sglang": sglang_http._CAPABILITIES | {Capability.SEED, Capability.DENOISE},
        "openai": open_openai("m", "m", stated).info.capabilities,
    }
    text = section(page("engines.md"), "What each can carry")
    kinds = re.findall(r"`(\w+)`", row(text, "| `embedded`"))
    assert set(kinds) == set(able)
    seen = set()
    for capability in set(Capability) - {Capability.CHAT_ONLY}:
        cells = [cell.strip() for cell in row(text, f"`{capability}`").split("|")[2:-1]]
        for kind, cell in zip(kinds, cells, strict=True):
            has, can = (carries(one.get(kind, able[kind]), capability) for one in (able, may))
            assert cell == ("yes" if has else "where known" if can else "no"), (kind, capability)
            seen.add(cell)
    assert seen == {"yes", "no", "where known"}


def carries(able: frozenset[Capability], capability: Capability) -> bool:
    is_text = capability is Capability.CONTINUE_TEXT
    return capability in able or (is_text and Capability.TOKENS in able)


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("`openai`", OpenAIOptions),
        ("`sglang`", SGLangOptions),
        ("Judges", HttpOptions),
        ("Judges", JudgeOptions),
    ],
)
def test_options_of_remote_kinds_are_documented(title: str, model: type[BaseModel]) -> None:
    assert set(model.model_fields) <= code_words(section(page("engines.md"), title))


def test_every_known_upstream_is_documented_as_it_is() -> None:
    text = section(page("engines.md"), "`openai`")
    for name, dialect in DIALECTS.items():
        cells = [cell.strip() for cell in row(text, f"`{name}` |").split("|")[2:-1]]
        assert cells[0].strip("`") == (dialect.continues or "no"), name
        assert cells[1] in ("yes",) if dialect.has_seed else cells[1] != "yes", name
        assert cells[2] in ("yes",) if dialect.has_logprobs else cells[2] != "yes", name
        assert set(re.findall(r"`(\w+)`", cells[3])) == set(dialect.fields), name


def test_every_kind_has_its_place() -> None:
    kinds = {found for found in re.findall(r"^\| `(\w+)` \|", page("engines.md"), re.MULTILINE)}
    assert set(load("bough.engines")) <= kinds


def test_the_page_shows_the_example_as_it_is() -> None:
    assert EXAMPLE.read_text() in page("strategies.md")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_example_keeps_the_laws(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    every = {**load("bough.strategies"), FirstGood.name: FirstGood}
    monkeypatch.setattr("search.registry.load", lambda group: every)
    await check(
        Subject(
            name=FirstGood.name,
            params={"width": 3, "threshold": 0.8},
            make_engine=lambda: ToyEngine(steps, max_step_tokens=6),
            make_judge=lambda: ToyJudge(judge),
            sampling=BRIEF,
        )
    )
