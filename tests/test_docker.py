"""What docker/ says agrees with itself and with the code: the files it names exist, pins and metric names are ours."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import trimtab.server.metrics  # noqa: F401  (registers what is counted)
from trimtab.server.config import Config

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
KUSTOMIZATIONS = sorted(file.parent for file in KUBERNETES.rglob("kustomization.yaml"))
FLAVOURS = ("cpu", "gpu")

PROMETHEUS_S_OWN = {"up"}
VLLM_S = {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
WORDS = {"and", "bool", "by", "group_left", "group_right", "ignoring", "offset", "on", "or", "unless", "without"}
"""PromQL's own, beside its functions, which a parenthesis follows."""


def loaded(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def dashboard() -> Any:
    return json.loads((DOCKER / "grafana/dashboards/trimtab.json").read_text())


def expressions() -> Iterator[str]:
    """Every PromQL query of the dashboard, its variables and the alerts."""
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard()["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), \w+\)", variable["definition"])
        assert found
        yield found[1]
    for group in loaded(DOCKER / "alerts.yml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def metrics(query: str) -> set[str]:
    """The names of metrics in a query: the words that are no labels, functions or operators."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare)) - WORDS


def registered() -> set[str]:
    """Names as they are scraped."""
    return {family.name + suffix for family in REGISTRY.collect() for suffix in SUFFIXES.get(family.type, ("",))}


def grace() -> tuple[float, float]:
    """Seconds from the request to end until the kill: under compose, and under Kubernetes after `preStop`."""
    seconds = loaded(DOCKER / "compose.yaml")["services"]["trimtab"]["stop_grace_period"]
    pod = loaded(KUBERNETES / "base/deployment.yaml")["spec"]["template"]["spec"]
    _, slept = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return float(seconds.removesuffix("s")), pod["terminationGracePeriodSeconds"] - float(slept)


@pytest.mark.parametrize("file", sorted([*DOCKER.rglob("*.yaml"), *DOCKER.rglob("*.yml")]), ids=lambda file: file.name)
def test_yaml_parses(file: Path) -> None:
    assert loaded(file)


def test_names_of_metrics_are_found_in_queries() -> None:
    query = 'sum by (le, kind) (rate(a_total{x=~"b|c"}[5m])) / histogram_quantile(0.5, vllm:d{y="e"}) > 0.05 or up == 0'
    assert metrics(query) == {"a_total", "vllm:d", "up"}


def test_queries_use_what_is_counted() -> None:
    asked = {name for query in expressions() for name in metrics(query)}
    assert asked - registered() - VLLM_S - PROMETHEUS_S_OWN == set()


def test_the_dashboard_s_panels_are_told_apart() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {
        loaded(DOCKER / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["uid"]
    }


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_images_pin_what_the_project_pins(flavour: str) -> None:
    text = (DOCKER / f"Dockerfile.{flavour}").read_text()
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][flavour]
    installs = re.findall(r"pip install ([^'\\\n]*==.*?)(?: \\| --|$)", text, re.MULTILINE)
    assert installs
    assert {tuple(install.split()) for install in installs} == {tuple(pins)}
    assert f"pip install '.[{flavour}]'" in text


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_images_copy_what_exists_and_the_context_lets_through(flavour: str) -> None:
    text = (DOCKER / f"Dockerfile.{flavour}").read_text()
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE) for name in line.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {"trimtab", *(path.name for path in (ROOT / "trimtab").iterdir() if path.is_symlink())}


def test_compose_names_what_exists() -> None:
    compose = loaded(DOCKER / "compose.yaml")
    for service in compose["services"].values():
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in compose["volumes"] or (DOCKER / source).exists()
        assert set(service.get("secrets", ())) <= set(compose["secrets"])


def test_prometheus_scrapes_the_server_with_its_key() -> None:
    config = loaded(DOCKER / "prometheus.yml")
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["trimtab:8000"]}]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    services = loaded(DOCKER / "compose.yaml")["services"]
    assert all(secret.name in services[name]["secrets"] for name in ("prometheus", "trimtab", "trimtab-gpu"))
    assert all((DOCKER / file).exists() for file in config["rule_files"])


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_kustomizations_name_what_exists(folder: Path) -> None:
    said = loaded(folder / "kustomization.yaml")
    files = [file for generator in said.get("configMapGenerator", ()) for file in generator["files"]]
    paths = [patch["path"] for patch in said.get("patches", ())]
    for name in [*said["resources"], *said.get("components", ()), *files, *paths]:
        assert (folder / name).exists(), name


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_configurations_of_the_pods_are_valid(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (KUBERNETES / folder / "config.yaml").read_text().replace("/app/demo", str(ROOT / "demo"))
    assert Config.model_validate(yaml.safe_load(text)).model_name


def test_the_pods_are_probed_where_the_server_answers() -> None:
    [container] = loaded(KUBERNETES / "base/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert container["ports"][0]["containerPort"] == Config.model_fields["port"].default


def test_answers_under_way_end_before_the_kill() -> None:
    drain: Any = Config.model_validate({"base": "toy"})
    assert min(grace()) > drain.limits.drain_s


def test_serve_run_finds_the_builder_s_options_by_its_annotation() -> None:
    """A string in the class's place, and Ray Serve hands the builder a bare dict."""
    tree = ast.parse((DOCKER / "ray_serve.py").read_text())
    [build] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"]
    assert isinstance(build.args.args[0].annotation, ast.Name)
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert not imported
