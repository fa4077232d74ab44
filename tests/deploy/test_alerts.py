"""Alerts fire when what they are for happens, and not before: by Prometheus' own promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_chart import REPOSITORY

RULES = REPOSITORY / "deploy" / "grafana" / "alerts.yaml"
GIB = 2**30
MINUTES = 240
CHANGE = 120
"""Minutes for which all is well before something happens."""


@dataclass(frozen=True)
class Story:
    """What happens, by series: first value and what is added every minute, before and after.

    Attributes:
        fires_by: minutes after the change.
        labels: of the alert, beside its severity.
        steady: series that do not change.
    """

    fires_by: int
    before: Mapping[str, tuple[float, float]]
    after: Mapping[str, tuple[float, float]]
    labels: Mapping[str, str] = field(default_factory=dict)
    steady: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def level(value: float) -> tuple[float, float]:
    return value, 0.0


def change(fires_by: int, series: str, before: float, after: float, **labels: str) -> Story:
    """Of one series that stands at a level."""
    return Story(fires_by, {series: level(before)}, {series: level(after)}, labels)


SERVING = "atlasloop_attention_serving"
INFERENCES = 'atlasloop_attention_inferences_total{{model="unet",version="0",outcome="{}"}}'
STORE = 'persistentvolumeclaim="site-atlasloop-store"'

STORIES = {
    "AtlasLoopAttentionNotServing": change(7, SERVING, 1, 0),
    "AtlasLoopAttentionReplicaNotServing": Story(
        17, {f'{SERVING}{{pod="a"}}': level(1)}, {f'{SERVING}{{pod="a"}}': level(0)},
        steady={f'{SERVING}{{pod="b"}}': level(1)},
    ),
    "AtlasLoopInferencesFail": Story(
        25, {INFERENCES.format("error"): (0, 0)}, {INFERENCES.format("error"): (0, 5)},
        {"model": "unet", "version": "0"}, {INFERENCES.format("ok"): (0, 100)},
    ),
    "AtlasLoopCallsFail": Story(
        35,
        {'atlasloop_attention_calls_total{method="ScoreCase",status="INTERNAL"}': (0, 0)},
        {'atlasloop_attention_calls_total{method="ScoreCase",status="INTERNAL"}': (0, 1)},
        {"method": "ScoreCase"},
    ),
    "AtlasLoopTritonQueueGrows": change(
        17, 'nv_inference_pending_request_count{model="unet"}', 10, 100
    ),
    "AtlasLoopGpuMemoryFull": Story(
        17, {'nv_gpu_memory_used_bytes{gpu_uuid="g"}': level(50 * GIB)},
        {'nv_gpu_memory_used_bytes{gpu_uuid="g"}': level(79 * GIB)}, {"gpu_uuid": "g"},
        {'nv_gpu_memory_total_bytes{gpu_uuid="g"}': level(80 * GIB)},
    ),
    "AtlasLoopVolumeFillsUp": Story(
        17, {f"kubelet_volume_stats_available_bytes{{{STORE}}}": level(90 * GIB)},
        {f"kubelet_volume_stats_available_bytes{{{STORE}}}": level(9 * GIB)},
        {"persistentvolumeclaim": "site-atlasloop-store"},
        {f"kubelet_volume_stats_capacity_bytes{{{STORE}}}": level(100 * GIB)},
    ),
    "AtlasLoopStoreFillsUp": Story(
        17, {"atlasloop_loop_store_free_bytes": level(90 * GIB)},
        {"atlasloop_loop_store_free_bytes": level(9 * GIB)},
        steady={"atlasloop_loop_store_bytes": level(100 * GIB)},
    ),
    "AtlasLoopRunsFail": change(
        3, 'atlasloop_loop_failed_runs{flow="score-shard"}', 0, 2, flow="score-shard"
    ),
    "AtlasLoopRunsAreLate": change(17, 'atlasloop_loop_runs{state="late"}', 0, 3),
    "AtlasLoopScoringStalls": Story(
        65, {'atlasloop_loop_scored_cases{reading="paper"}': (0, 2)},
        {'atlasloop_loop_scored_cases{reading="paper"}': level(240)},
        steady={
            'atlasloop_attention_calls_total{method="ScoreCase",status="OK"}': (0, 2),
            'atlasloop_loop_runs{state="running"}': level(1),
        },
    ),
    "AtlasLoopEventsWait": change(17, "atlasloop_loop_events_waiting", 0, 1),
    "AtlasLoopLeasesRunOut": change(3, "atlasloop_loop_leases_ending", 0, 4),
    "AtlasLoopNotMeasured": change(
        12, 'atlasloop_loop_up{part="catalog"}', 1, 0, part="catalog"
    ),
}  # fmt: skip


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_every_alert_has_a_story() -> None:
    assert set(STORIES) == set(rules())


def _values(story: Story) -> list[dict[str, str]]:
    def steps(start_and_step: tuple[float, float], minutes: int) -> str:
        start, step = start_and_step
        return f"{start:g}+{step:g}x{minutes - 1}"

    series = [
        {
            "series": name,
            "values": f"{steps(first, CHANGE)} {steps(story.after[name], MINUTES - CHANGE)}",
        }
        for name, first in story.before.items()
    ]
    return series + [
        {"series": name, "values": steps(value, MINUTES)} for name, value in story.steady.items()
    ]


def _test_of(name: str, story: Story) -> dict[str, Any]:
    rule = rules()[name]
    annotations = {
        key: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: story.labels[found[1]], text)
        for key, text in rule["annotations"].items()
    }
    fires = [{"exp_labels": {**rule["labels"], **story.labels}, "exp_annotations": annotations}]
    return {
        "name": name,
        "interval": "1m",
        "input_series": _values(story),
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{CHANGE - 1}m", "exp_alerts": []},
            {"alertname": name, "eval_time": f"{CHANGE + story.fires_by}m", "exp_alerts": fires},
        ],
    }


def test_alerts_fire_when_it_happens_and_not_before(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NO PROMTOOL: run `make setup-prometheus`")
    tests = [_test_of(name, story) for name, story in STORIES.items()]
    file = tmp_path / "stories.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}, width=1000))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
