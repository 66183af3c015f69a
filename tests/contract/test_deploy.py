"""What is deployed parses, refers to files that exist, and names metrics that the server has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.errors import TABLE
from server.settings import Settings
from tests.api.harness import CHAT, body, client_of, noisy_settings, serving

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "bough.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"

_SELECTED = re.compile(r"\b(bough_[a-z0-9_]+)\s*(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_STATUS = re.compile(r'\bstatus(=~|=)\\?"([^"\\]*)')
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


async def scrape() -> tuple[set[str], dict[str, set[str]]]:
    """Names of all series that the server can have, and the labels of those that it has now."""
    async with serving(noisy_settings()) as app, client_of(app) as client:
        for strategy in ("single", "best_of_n"):
            options = {"strategy": strategy, "cache": False}
            reply = await client.post(CHAT, json=body(bough=options, max_tokens=8))
            assert reply.status_code == 200
        text = (await client.get("/metrics")).text
    names: set[str] = set()
    labels: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    return names, labels


async def test_every_metric_and_label_exists_in_the_server() -> None:
    names, labels = await scrape()
    assert "bough_kv_pages" in names
    used = list(expressions())
    assert sum(expression.count("bough_") for expression in used) > 30
    for expression in used:
        found = _SELECTED.findall(expression)
        known = {"instance", "job"}
        for name, selector in found:
            assert name in names, f"{name} in {expression}"
            known |= labels[name]
            for label in _LABEL.findall(selector):
                assert not labels[name] or label in labels[name] | {"instance"}, expression
        if all(labels[name] for name, _ in found):
            for group in _GROUPED.findall(expression):
                assert {label.strip() for label in group.split(",")} <= known, expression


def statuses() -> set[str]:
    """Values that the label `status` can have, of those that the table of errors fixes."""
    return {"ok", "cancelled"} | {row.code for row in TABLE.values() if isinstance(row.code, str)}


def test_every_status_that_is_selected_exists() -> None:
    selected = [found for used in expressions() for found in _STATUS.findall(used)]
    assert len(selected) >= 5
    for operator, value in selected:
        for one in value.split("|") if operator == "=~" else [re.escape(value)]:
            assert any(re.fullmatch(one, status) for status in statuses()), f"{one} of {value}"


def test_server_errors_are_told_from_refusals() -> None:
    """The alert on failures selects what is a 5xx, and nothing else."""
    (rule,) = (
        rule
        for group in yaml.safe_load(ALERTS.read_text())["groups"]
        for rule in group["rules"]
        if rule["alert"] == "BoughFailing"
    )
    ((_, pattern),) = _STATUS.findall(rule["expr"])
    for row in TABLE.values():
        if isinstance(row.code, str):
            assert bool(re.fullmatch(pattern, row.code)) == (row.status >= 500), row.code


def test_the_check_would_notice_a_metric_that_is_gone() -> None:
    found = _SELECTED.findall('sum by (a) (rate(bough_x_total{b=~"$c",d!="e"}[5m])) / bough_y')
    assert found == [("bough_x_total", 'b=~"$c",d!="e"'), ("bough_y", "")]
    assert _LABEL.findall(found[0][1]) == ["b", "d"]


def test_every_panel_has_a_unit_a_description_and_a_place_of_its_own() -> None:
    loaded = dashboard()
    assert loaded["uid"] == "bough-overview"
    taken: set[tuple[int, int]] = set()
    for panel in loaded["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))
    assert len({panel["id"] for panel in loaded["panels"]}) == len(loaded["panels"])
    for panel in panels():
        assert panel["description"], panel["title"]
        is_heatmap = panel["type"] == "heatmap"
        assert is_heatmap or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            if "rate(" in target["expr"] or "increase(" in target["expr"]:
                assert "[$__rate_interval]" in target["expr"], panel["title"]
            if "/ (" in target["expr"]:
                assert target["expr"].endswith("> 0)"), f"{panel['title']} may divide by zero"


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return loaded


def test_compose_listens_on_loopback_only() -> None:
    services = compose()["services"]
    assert set(services) == {"bough", "redis", "prometheus", "grafana"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert "ports" not in services["redis"]
    assert not any("network_mode" in service for service in services.values())


def test_compose_refers_to_files_and_services_that_exist() -> None:
    loaded = compose()
    folder = DEPLOY / "compose"
    build = loaded["services"]["bough"]["build"]
    context = (folder / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    for service in loaded["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in loaded["volumes"] or (folder / source).is_dir(), volume
        assert set(service.get("depends_on", ())) <= set(loaded["services"])
    # the names that configurations call each other by
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == ["bough:8000"]
    assert prometheus["rule_files"] == [ALERTS.name]
    sources = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    assert yaml.safe_load(sources.read_text())["datasources"][0]["url"] == "http://prometheus:9090"
    path = yaml.safe_load((sources.parents[1] / "dashboards" / "files.yaml").read_text())
    mounted = path["providers"][0]["options"]["path"]
    mounts = loaded["services"]["grafana"]["volumes"]
    assert f"../grafana/dashboards:{mounted}:ro" in mounts


def test_compose_settings_are_settings() -> None:
    for name in compose()["services"]["bough"]["environment"]:
        field: Any = Settings
        for part in name.removeprefix("BOUGH_").lower().split("__"):
            assert part in field.model_fields, name
            field = field.model_fields[part].annotation


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def test_the_image_does_not_run_as_root_and_says_how_it_is() -> None:
    final = instructions()
    last_stage = max(place for place, (name, _) in enumerate(final) if name == "FROM")
    by_name = dict(final[last_stage:])
    assert by_name["USER"] == "10001:10001"
    assert "/health/ready" in by_name["HEALTHCHECK"]
    assert json.loads(by_name["ENTRYPOINT"]) == ["bough"]
    assert json.loads(by_name["CMD"])[0] == "serve"
    compile(json.loads(by_name["HEALTHCHECK"].partition("CMD ")[2])[2], "probe", "exec")


def test_the_image_gets_every_package_and_only_what_exists() -> None:
    copied: set[str] = set()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            copied |= set(rest.split()[:-1])
    missing = [source for source in copied if not (ROOT / source).exists()]
    assert missing == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages <= copied
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source}" for source in copied} <= set(ignore)


def test_the_image_installs_the_versions_that_were_tested() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN"]
    (installs,) = (rest for rest in runs if "requirements" in rest)
    for one in installs.split("&&"):
        assert "pip install" not in one or "constraints.txt" in one or "torch.txt" in one, one
    pinned = (ROOT / "constraints.txt").read_text()
    (torch,) = re.findall(r"grep '(\^torch==)' constraints.txt > /tmp/torch.txt", installs)
    assert len(re.findall(torch, pinned, re.MULTILINE)) == 1


def test_no_package_host_is_written_down() -> None:
    for path in (DEPLOY / "docker").iterdir():
        assert "http" not in re.sub(r"http://127\.0\.0\.1:\d+", "", path.read_text()), path.name


def test_requirements_are_those_of_the_project() -> None:
    command = [
        sys.executable,
        str(DEPLOY / "docker" / "requirements.py"),
        "pyproject.toml",
        "torch",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    names = [re.split(r"[<>=~!\[]", line)[0] for line in ran.stdout.splitlines()]
    assert {"fastapi", "redis", "torch", "safetensors"} <= set(names)
    assert names.count("torch") == 1
