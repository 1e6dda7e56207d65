"""deploy/grafana-dashboard.json and prometheus.yml: every metric and label in them is one that is
exported."""

import json
import re

import pytest
import yaml
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels as ray_panels
from ray.util import metrics

from pipelines.cluster.progress import Counter
from tests.deploy.files import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OURS = "ray_video_fisher_"


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def names(expression: str) -> set[str]:
    """The metrics of a PromQL expression."""
    return set(re.findall(r"\b(?:ray|autoscaler)_\w+", expression))


def labels(expression: str) -> set[str]:
    """The labels that it groups or chooses by."""
    grouped = re.findall(r"\b(?:by|on) ?\(([^)]*)\)", expression)
    chosen = re.findall(r"(\w+) ?(?:=~|!~|!=|=)\"", expression)
    return {name.strip() for group in grouped for name in group.split(",")} | set(chosen)


@pytest.fixture(scope="module")
def ours() -> dict[str, set[str]]:
    """Metrics that a step registers, as Prometheus sees them, with their labels."""
    found = {}

    def record(suffix: str):
        def make(name: str, _: str, tag_keys: tuple[str, ...]):
            found[f"ray_{name}{suffix}"] = set(tag_keys)
            return type("Metric", (), {"set": lambda *_: None})()

        return make

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "Gauge", record(""))
        # test_progress.py sees these names at a node's endpoint.
        patch.setattr(metrics, "Counter", record("_total"))
        Counter.__ray_metadata__.modified_class()
    return found


@pytest.fixture(scope="module")
def rays() -> tuple[set[str], set[str]]:
    """Metrics and labels of the dashboard that this version of Ray ships."""
    text = [
        target.expr.replace("{{", "{").replace("}}", "}")
        for row in ray_panels.DEFAULT_GRAFANA_ROWS
        for panel in row.panels
        for target in panel.targets
    ]
    found = {name for expr in text for name in names(expr)}
    return found, {label for expr in text for label in labels(expr)}


@pytest.mark.parametrize("expression", expressions())
def test_metrics_and_labels_are_exported(
    expression: str, ours: dict[str, set[str]], rays: tuple[set[str], set[str]]
) -> None:
    used = names(expression)
    assert used, "an expression reads some metric"
    mine = {name for name in used if name.startswith(OURS)}
    assert mine <= set(ours)
    assert used - mine <= rays[0]
    assert not mine or not used - mine, "no expression mixes ours and Ray's"
    # WorkerId is on every metric of a worker (test_progress.py).
    known = set.union(*(ours[name] for name in mine)) | {"WorkerId"} if mine else rays[1]
    assert labels(expression) <= known


def test_the_dashboard_shows_all_of_a_step(ours: dict[str, set[str]]) -> None:
    shown = {name for expression in expressions() for name in names(expression)}
    assert set(ours) <= shown
    assert {"ray_node_gpus_utilization", "ray_object_store_memory"} <= shown
    assert "autoscaler_active_nodes" in shown
    assert any('Location="SPILLED"' in expression for expression in expressions())


def test_grafana_can_import_it() -> None:
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r"\$\{?([a-z]+)\}?", text)) - {"__rate_interval"} <= set(variables)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_panels_do_not_overlap() -> None:
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_legends_are_of_labels_that_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = set(re.findall(r"by ?\(([^)]*)\)", target["expr"])[0].split(", "))
            assert shown <= grouped, panel["title"]


def test_prometheus_reads_the_file_that_ray_keeps() -> None:
    import ray._private.ray_constants as constants

    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["file_sd_configs"] == [
        {"files": [f"/tmp/ray/{constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}
    ]
