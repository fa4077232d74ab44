"""The chart: valid for every Kubernetes version, safe by policy, and refusing what cannot work."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from rendered_chart import (
    CHART,
    KUBERNETES,
    RELEASE,
    VALUES,
    Manifest,
    component,
    container,
    containers,
    helm,
    job_templates,
    matches,
    of_kind,
    pod_templates,
    render,
    template,
)

FOREIGN_KINDS = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
"""Of operators; held against the schemas in this folder."""

SCHEMAS = json.loads((Path(__file__).parent / "foreign_kinds.json").read_text())

values_files = pytest.mark.parametrize("values", VALUES)


def by_id(parameter: object) -> str:
    return str(parameter)


@pytest.mark.parametrize("version", KUBERNETES)
@values_files
def test_every_object_is_valid(values: str, version: str) -> None:
    """Strict: an unknown field, and an unknown kind, is an error."""
    manifests = render(values, version)
    for one in manifests:
        if one["kind"] in FOREIGN_KINDS:
            jsonschema.validate(one, SCHEMAS[one["kind"]])
        else:
            kubernetes_validate.validate(one, version, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names))


def test_an_unknown_kind_or_field_would_be_noticed() -> None:
    (service, *_) = of_kind(render("trial"), "Service")
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate({**service, "kind": "Servise"}, "1.32", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        kubernetes_validate.validate({**service, "spec": {"portz": []}}, "1.32", strict=True)


@values_files
def test_lint_has_no_word_to_say(values: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{values}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


@values_files
def test_kubernetes_that_is_too_old_is_refused(values: str) -> None:
    assert "kubeVersion" in template(values, "1.28").stderr


# Policies


@values_files
def test_pods_are_restricted(values: str) -> None:
    """PodSecurity "restricted", and a read-only root file system."""
    pods = list(pod_templates(render(values)))
    assert len(pods) > 8
    for name, pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            assert not spec.get(key), name
        for volume in spec["volumes"]:
            kinds = set(volume) - {"name"}
            assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}, name
        for one in containers(pod):
            context = one["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["runAsNonRoot"] is True, name
            assert "privileged" not in context, name
            assert all("hostPort" not in port for port in one.get("ports", [])), name


@values_files
def test_the_token_of_the_cluster_is_for_workers_alone(values: str) -> None:
    for name, pod in pod_templates(render(values)):
        wants_token = pod["spec"]["automountServiceAccountToken"]
        assert wants_token == (pod["metadata"]["labels"].get("atlasloop/role") == "worker"), name


@values_files
def test_every_container_has_bounds(values: str) -> None:
    for name, pod in pod_templates(render(values)):
        for one in containers(pod):
            assert one["resources"]["requests"]["memory"], name
            assert one["resources"]["requests"]["cpu"], name
            assert one["resources"]["limits"]["memory"], name


@values_files
def test_what_keeps_running_is_probed_and_ends_in_peace(values: str) -> None:
    for one in of_kind(render(values), "Deployment", "StatefulSet"):
        spec = one["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= 30
        for running in spec["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert probe in running, (one["metadata"]["name"], probe)


@values_files
def test_mounts_have_volumes_and_volumes_are_mounted(values: str) -> None:
    for name, pod in pod_templates(render(values)):
        volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
        assert len(volumes) == len(set(volumes)), name
        mounted = {m["name"] for one in containers(pod) for m in one.get("volumeMounts", [])}
        assert mounted == set(volumes), name
        for one in containers(pod):
            paths = [mount["mountPath"] for mount in one.get("volumeMounts", [])]
            assert len(paths) == len(set(paths)), name
            assert "/tmp" in paths, f"{name}: the root file system is read-only"


@values_files
def test_what_a_pod_refers_to_is_there(values: str) -> None:
    manifests = render(values)
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    given = {"hospital-ca", "atlas-store", "atlas-landing", "atlas-models", "atlas-model-cache"}
    for name, pod in pod_templates(manifests):
        account = pod["spec"].get("serviceAccountName", "default")
        if account not in ("default", "{{ service_account_name }}"):
            assert ("ServiceAccount", account) in there, name
        for volume in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert claim in given or ("PersistentVolumeClaim", claim) in there, (name, claim)
            if "configMap" in volume:
                config = volume["configMap"]["name"]
                assert config in given or ("ConfigMap", config) in there, (name, config)


@values_files
def test_selectors_match_exactly_their_pods(values: str) -> None:
    manifests = render(values)
    pods = list(pod_templates(manifests))
    for one in of_kind(manifests, "Deployment", "StatefulSet"):
        selector = one["spec"]["selector"]
        assert matches(selector, one["spec"]["template"]["metadata"]["labels"])
        name = f"{one['kind']}/{one['metadata']['name']}"
        others = [
            n for n, pod in pods if n != name and matches(selector, pod["metadata"]["labels"])
        ]
        assert others == [], name
    for service in of_kind(manifests, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        (pod,) = [pod for _, pod in pods if matches(selector, pod["metadata"]["labels"])]
        offered = {port["name"] for one in containers(pod) for port in one.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in offered, service["metadata"]["name"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]
        assert sum(matches(selector, pod["metadata"]["labels"]) for _, pod in pods) == 1
    services = of_kind(manifests, "Service")
    for monitor in of_kind(manifests, "ServiceMonitor"):
        (service,) = [
            s for s in services if matches(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {end["port"] for end in monitor["spec"]["endpoints"]} <= ports
    targets = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in targets


@values_files
def test_images_come_from_the_mirror(values: str) -> None:
    mirror = yaml.safe_load((CHART / "ci" / f"{values}.yaml").read_text())["global"][
        "imageRegistry"
    ]
    for name, image in _images(values):
        assert image.startswith(f"{mirror}/"), name
        if values == "production":
            assert "@sha256:" in image, name
        else:
            assert not image.endswith(":latest"), name
            assert ":" in image.rpartition("/")[2], name


def test_the_mirror_list_names_every_image() -> None:
    listed = {
        re.sub("^(nvcr|docker|quay).io/", "", re.split("[:@]", line)[0])
        for line in (CHART / "files" / "images.txt").read_text().split()
    }
    rendered = set()
    for values in VALUES:
        mirror = yaml.safe_load((CHART / "ci" / f"{values}.yaml").read_text())
        registry = mirror["global"]["imageRegistry"]
        rendered |= {
            image.removeprefix(f"{registry}/").partition("@")[0].rpartition(":")[0]
            or image.removeprefix(f"{registry}/").partition("@")[0]
            for _, image in _images(values)
        }
    assert rendered == listed - {"library/python"}
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    for image in images.values():
        if image["registry"]:
            version = f"@{image['digest']}" if image["digest"] else f":{image['tag']}"
            line = f"{image['registry']}/{image['repository']}{version}"
            assert line in (CHART / "files" / "images.txt").read_text()


def test_nvidias_image_is_pinned_by_digest() -> None:
    """By default, in the chart as in compose."""
    image = yaml.safe_load((CHART / "values.yaml").read_text())["images"]["tritonGpu"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", image["digest"])
    rendered = dict(_images("production"))
    tritons = {name for name in rendered.values() if "/nvidia/tritonserver" in name}
    assert {name.partition("@")[2] for name in tritons} == {image["digest"]}
    compose = yaml.safe_load((CHART.parents[1] / "compose" / "compose.gpu.yaml").read_text())
    pinned = f"nvidia/tritonserver:{image['tag']}@{image['digest']}}}"
    assert compose["services"]["triton"]["image"].endswith(pinned)


def _images(values: str) -> list[tuple[str, str]]:
    manifests = render(values)
    found = [
        (name, one["image"])
        for name, pod in pod_templates(manifests)
        for one in containers(pod)
        if one["image"] != "{{ image }}"
    ]
    (pools,) = [m for m in of_kind(manifests, "ConfigMap") if "work-pools" in m["metadata"]["name"]]
    for pool, text in pools["data"].items():
        image = json.loads(text)["variables"]["properties"]["image"]["default"]
        found.append((pool, image))
    return found


@values_files
def test_no_secret_stands_in_any_object(values: str) -> None:
    manifests = render(values)
    assert of_kind(manifests, "Secret") == []
    for name, pod in pod_templates(manifests):
        for one in containers(pod):
            environment = one.get("env", [])
            for variable in environment if isinstance(environment, list) else []:
                secret = any(
                    word in variable["name"]
                    for word in ("PASSWORD", "SECRET", "TOKEN", "AUTH_STRING", "CONTROL_KEY")
                )
                named = variable["name"].endswith(("_FILE", "_SECRET_NAME", "_SECRET_KEY"))
                assert not secret or named or "valueFrom" in variable, (name, variable["name"])
                assert "@" not in re.sub(
                    "postgresql://atlasloop(_review)?@", "", str(variable.get("value", ""))
                ), (name, "a password in an address")


@values_files
def test_replicas_spread_and_claims_stay(values: str) -> None:
    manifests = render(values)
    for one in of_kind(manifests, "Deployment"):
        if component(one["spec"]["template"]) in ("triton", "attention", "review"):
            assert len(one["spec"]["template"]["spec"]["topologySpreadConstraints"]) == 2
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@values_files
def test_an_ingress_has_tls(values: str) -> None:
    for ingress in of_kind(render(values), "Ingress"):
        hosts = [rule["host"] for rule in ingress["spec"]["rules"]]
        assert [tls["hosts"] for tls in ingress["spec"]["tls"]] == [hosts]
        assert all(tls["secretName"] for tls in ingress["spec"]["tls"])


# The network

EDGES = {
    ("attention", "triton", 8001),
    *(
        (source, "triton", port)
        for source in ("flow-run", "toolbox", "test")
        for port in (8001, 8002)
    ),
    *((source, "attention", 18010) for source in ("flow-run", "toolbox", "test")),
    ("test", "review", 18030),
    *(
        (source, "prefect", 4200)
        for source in ("flow-run", "toolbox", "events", "register", "test")
    ),
    ("prefect-proxy", "prefect", 4200),
    ("worker-cpu", "prefect", 4200),
    ("worker-gpu", "prefect", 4200),
    *(
        (source, "postgresql", 5432)
        for source in ("prefect", "review", "flow-run", "toolbox", "events", "migrate", "backup")
    ),
}
"""Every connection between pods that the policies may allow, and no other: see the threat model."""


@values_files
def test_nothing_is_allowed_that_is_not_listed(values: str) -> None:
    manifests = render(values)
    wanted = {_moved(edge) for edge in EDGES} if values == "sidecar" else set(EDGES)
    there = {component(pod) for _, pod in pod_templates(manifests)}
    wanted = {
        edge for edge in wanted if edge[0] in there and edge[1] in there and len(set(edge)) == 3
    }
    assert _allowed(manifests) == wanted


def _moved(edge: tuple[str, str, int]) -> tuple[str, str, int]:
    """In Triton's pod the attention service goes by Triton's label."""
    source, target, port = edge
    return (
        "triton" if source == "attention" else source,
        "triton" if target == "attention" else target,
        port,
    )


def _allowed(manifests: list[Manifest]) -> set[tuple[str, str, int]]:
    """(from, to, port) that both an egress and an ingress rule allow, by component."""
    pods = {component(pod): pod["metadata"]["labels"] for _, pod in pod_templates(manifests)}
    policies = [one["spec"] for one in of_kind(manifests, "NetworkPolicy")]
    ports = {
        port["containerPort"]
        for _, pod in pod_templates(manifests)
        for one in containers(pod)
        for port in one.get("ports", [])
    }
    allowed = set()
    for source, target in itertools.permutations(pods, 2):
        for port in ports:
            out = _opens(policies, "egress", "to", pods[source], pods[target], port)
            into = _opens(policies, "ingress", "from", pods[target], pods[source], port)
            if out and into:
                allowed.add((source, target, port))
    return allowed


def _opens(policies: list[Manifest], way: str, peers: str, own: Any, other: Any, port: int) -> bool:
    return any(
        matches(policy["podSelector"], own)
        and any(
            port in [allowed["port"] for allowed in rule["ports"]]
            and any(
                "podSelector" in peer and matches(peer["podSelector"], other)
                for peer in rule.get(peers, [])
            )
            for rule in policy.get(way, [])
        )
        for policy in policies
    )


@values_files
def test_every_pod_is_denied_by_default(values: str) -> None:
    manifests = render(values)
    (deny,) = [
        one["spec"]
        for one in of_kind(manifests, "NetworkPolicy")
        if one["metadata"]["name"].endswith("-default-deny")
    ]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny and "egress" not in deny
    for name, pod in pod_templates(manifests):
        assert matches(deny["podSelector"], pod["metadata"]["labels"]), name


def test_only_workers_speak_to_the_cluster() -> None:
    policies = of_kind(render("production"), "NetworkPolicy")
    outside = {
        policy["metadata"]["name"].removeprefix(f"{RELEASE}-atlasloop-")
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        if any("ipBlock" in peer for peer in rule.get("to", [{"ipBlock": {}}]))
    }
    assert outside == {
        "to-database", "worker-to-kubernetes", "review-to-oidc", "review-to-nninteractive",
        "prefect-proxy-to-oidc",
    }  # fmt: skip
    (role,) = of_kind(render("production"), "Role")
    verbs = {verb for rule in role["rules"] for verb in rule["verbs"]}
    assert "*" not in verbs
    assert all("secrets" not in rule["resources"] for rule in role["rules"])


# What values do


def test_triton_takes_a_gpu_where_it_is_told() -> None:
    triton = container(render("production"), "triton")
    assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert triton["resources"]["limits"]["memory"] == "12Gi"
    assert "nvidia/tritonserver@sha256:" in triton["image"]
    assert "nvidia.com/gpu" not in container(render("trial"), "triton")["resources"]["limits"]


def test_models_are_written_by_flow_runs_and_read_by_triton() -> None:
    who = {
        (name, one["name"]): mount
        for name, pod in pod_templates(render("production"))
        for one in containers(pod)
        for mount in one.get("volumeMounts", [])
        if mount["name"] == "models"
    }
    readers = {container for (_, container), mount in who.items() if mount.get("readOnly")}
    writers = {container for (_, container), mount in who.items() if not mount.get("readOnly")}
    assert (readers, writers) == ({"triton"}, {"model-repository", "prefect-job", "doctor"})


def test_the_key_to_the_models_is_for_triton_and_flow_runs() -> None:
    holders = {
        name
        for name, pod in pod_templates(render("production"))
        for volume in pod["spec"]["volumes"]
        if volume.get("secret", {}).get("secretName") == "atlasloop-triton"
    }
    assert holders == {"work pool cpu", "work pool gpu", "Pod/site-atlasloop-test-doctor"}
    manifests = render("production")
    by_reference = {
        one["name"]
        for _, pod in pod_templates(manifests)
        for one in containers(pod)
        for variable in (one["env"] if isinstance(one.get("env"), list) else [])
        if "valueFrom" in variable
    }
    assert by_reference == {"triton", "prefect-proxy"}


@values_files
def test_the_password_of_prefect_is_for_prefect_and_what_works_for_it(values: str) -> None:
    """Who has it may run code as the flows: not review, which faces people and their files."""
    manifests = render(values)
    pools = {f"work pool {pool}" for pool in ("cpu", "gpu")}
    toolbox = {"Deployment/site-atlasloop-toolbox"} if values == "trial" else set()
    assert _holders(manifests, "atlasloop-prefect") == pools | toolbox | {
        "Deployment/site-atlasloop-prefect",
        "Deployment/site-atlasloop-events",
        "Deployment/site-atlasloop-worker-cpu",
        "Deployment/site-atlasloop-worker-gpu",
        "Job/site-atlasloop-register",
        "Pod/site-atlasloop-test-doctor",
    }
    for name, pod in pod_templates(manifests):
        if component(pod) == "review":
            for one in containers(pod):
                assert not [v["name"] for v in one["env"] if "PREFECT" in v["name"]], name


def _holders(manifests: list[Manifest], secret: str) -> set[str]:
    """Pods in which `secret` is mounted."""
    return {
        name
        for name, pod in pod_templates(manifests)
        for volume in pod["spec"]["volumes"]
        if volume.get("secret", {}).get("secretName") == secret
    }


def test_review_has_a_role_of_its_own_and_no_other_password() -> None:
    for secret in ("", "review-only"):
        options = ["--set", f"database.review.existingSecret={secret}"]
        for values in ("trial", "production"):
            manifests = render(values, "1.32", *options)
            review = container(manifests, "review")
            variables = {v["name"]: v.get("value") for v in review["env"]}
            address = str(variables["ATLAS_REVIEW_CATALOG_URL"])
            assert address.startswith("postgresql://atlasloop_review@")
            (pod,) = [pod for _, pod in pod_templates(manifests) if component(pod) == "review"]
            (mounted,) = [
                volume["secret"]
                for volume in pod["spec"]["volumes"]
                if volume["name"] == "database-secret"
            ]
            assert mounted["secretName"] == (secret or "atlasloop-database")
            assert [item["key"] for item in mounted["items"]] == ["review-password"]


def test_prefect_answers_to_its_own_names() -> None:
    """And to the probes, which the kubelet sends to the pod's address."""
    for values, others in (("trial", []), ("production", ["prefect.example.org"])):
        prefect = container(render(values), "prefect")
        assert "atlas_flows.prefect_server:create_app" in prefect["args"]
        variables = {v["name"]: v.get("value") for v in prefect["env"]}
        hosts = str(variables["ATLASLOOP_PREFECT_HOSTS"]).split(",")
        assert hosts == ["site-atlasloop-prefect", *others]
        assert "*" not in str(variables["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert prefect[probe]["httpGet"]["httpHeaders"] == [
                {"name": "Host", "value": "localhost"}
            ]


def test_triton_has_no_http_endpoint() -> None:
    for values in VALUES:
        triton = container(render(values), "triton")
        assert "--allow-http=false" in triton["args"]
        assert any("--grpc-restricted-protocol=model-repository" in a for a in triton["args"])
        assert triton["livenessProbe"]["grpc"] == {"port": 8001}


@pytest.mark.parametrize(
    ("sslmode", "bundle", "said"),
    [
        ("verify-full", "", "sslmode=verify-full&sslrootcert=system"),
        ("verify-full", "ca", "sslmode=verify-full&sslrootcert=/etc/atlasloop/ca/ca.crt"),
        ("require", "", "sslmode=require"),
        ("verify-ca", "ca", "sslmode=verify-ca&sslrootcert=/etc/atlasloop/ca/ca.crt"),
    ],
)
def test_how_the_database_is_trusted(sslmode: str, bundle: str, said: str) -> None:
    """libpq refuses the system's authorities with any mode but verify-full."""
    options = [f"database.sslmode={sslmode}", f"global.caBundle.configMap={bundle}"]
    manifests = render("production", "1.32", *[x for o in options for x in ("--set", o)])
    for base in job_templates(manifests).values():
        url = base["variables"]["properties"]["env"]["default"]["ATLASLOOP_CATALOG_URL"]
        assert url.partition("?")[2] == said


def test_the_sidecar_shares_memory_with_triton() -> None:
    manifests = render("sidecar")
    (pod,) = [
        one["spec"]["template"]["spec"]
        for one in of_kind(manifests, "Deployment")
        if component(one["spec"]["template"]) == "triton"
    ]
    assert [one["name"] for one in pod["containers"]] == ["triton", "attention"]
    (memory,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    for one in pod["containers"]:
        assert {"name": "shm", "mountPath": "/dev/shm"} in one["volumeMounts"]
    variables = {v["name"]: v.get("value") for v in pod["containers"][1]["env"]}
    assert variables["ATLAS_ATTENTION_TRITON"] == "127.0.0.1:8001"


def test_the_replicas_of_attention_are_seen_one_by_one() -> None:
    """Round robin needs the addresses of the pods: a headless service, and gRPC's `dns:///`."""
    (service,) = [
        one
        for one in of_kind(render("trial"), "Service")
        if one["metadata"]["name"].endswith("-attention")
    ]
    assert service["spec"]["clusterIP"] == "None"


def test_work_pools_follow_every_change_of_version() -> None:
    """A rollback too: runs would otherwise go on in the image that was taken back."""
    for values in VALUES:
        (job,) = [
            one for one in of_kind(render(values), "Job") if "register" in one["metadata"]["name"]
        ]
        hooks = job["metadata"]["annotations"]["helm.sh/hook"].split(",")
        assert hooks == ["post-install", "post-upgrade", "post-rollback"]


def test_a_gpu_is_asked_for_where_it_trains_alone() -> None:
    """A trial without GPUs asks for none; the loop waits for its trainings without holding one."""
    for values in VALUES:
        for pool, base in job_templates(render(values)).items():
            job = base["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
            (limits,) = [one["resources"]["limits"] for one in job["containers"]]
            wants = 1 if pool == "gpu" and values != "trial" else None
            assert limits.get("nvidia.com/gpu") == wants, (values, pool)
            environment = base["variables"]["properties"]["env"]["default"]
            assert environment["ATLASLOOP_TRAINING_DEPLOYMENT"] == "finetune/finetune"


def test_a_trial_fits_on_one_node() -> None:
    for claim in of_kind(render("trial"), "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"], claim["metadata"]["name"]
        size = claim["spec"]["resources"]["requests"]["storage"]
        assert int(size.removesuffix("Gi")) <= 50, claim["metadata"]["name"]


def test_no_claim_of_production_is_left_to_a_default_class() -> None:
    claims = of_kind(render("production"), "PersistentVolumeClaim")
    assert len(claims) == 6
    assert all(claim["spec"].get("storageClassName") for claim in claims)


def test_the_landing_folder_is_the_same_for_flow_runs_and_toolbox() -> None:
    manifests = render("trial")
    mounts = {
        component(pod): [
            (mount["mountPath"], volume["persistentVolumeClaim"]["claimName"])
            for one in containers(pod)
            for mount in one.get("volumeMounts", [])
            for volume in pod["spec"]["volumes"]
            if volume["name"] == mount["name"] == "landing"
        ]
        for _, pod in pod_templates(manifests)
    }
    there = [("/var/lib/atlasloop/landing", "site-atlasloop-landing")]
    assert {name: found for name, found in mounts.items() if found} == {
        "flow-run": there,
        "toolbox": there,
    }
    for base in job_templates(manifests).values():
        environment = base["variables"]["properties"]["env"]["default"]
        assert environment["ATLASLOOP_LANDING"] == there[0][0]


def test_a_cluster_may_choose_the_user() -> None:
    """OpenShift's SCC refuses a user of ours; everything else of "restricted" stays."""
    for name, pod in pod_templates(render("trial", "1.32", "--set", "security.userByCluster=true")):
        assert (
            pod["spec"]["securityContext"].keys() & {"runAsUser", "runAsGroup", "fsGroup"} == set()
        )
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        for one in containers(pod):
            assert one["securityContext"].keys() & {"runAsUser", "runAsGroup"} == set(), name


def test_dns_is_where_the_cluster_has_it() -> None:
    options = ["networkPolicy.dnsPorts={53,5353}", "networkPolicy.dnsCidrs={169.254.20.10/32}"]
    manifests = render("trial", "1.32", *[x for o in options for x in ("--set", o)])
    (dns,) = [
        one["spec"]["egress"]
        for one in of_kind(manifests, "NetworkPolicy")
        if one["metadata"]["name"].endswith("-dns")
    ]
    assert [peer.get("ipBlock") for peer in dns[0]["to"]] == [None, {"cidr": "169.254.20.10/32"}]
    assert {(p["protocol"], p["port"]) for p in dns[0]["ports"]} == {
        (protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)
    }


def _ingress(name: str, *options: str) -> Manifest:
    (found,) = [
        one
        for one in of_kind(render("production", "1.32", *options), "Ingress")
        if one["metadata"]["name"].endswith(f"-{name}")
    ]
    return found


def test_uploads_pass_the_ingress() -> None:
    """As large as the review service takes; an administrator's own annotation wins."""
    size = "nginx.ingress.kubernetes.io/proxy-body-size"
    assert _ingress("review")["metadata"]["annotations"][size] == str(256 << 20)
    more = ["--set", "review.settings.max_upload_bytes=1073741824"]
    assert _ingress("review", *more)["metadata"]["annotations"][size] == str(1 << 30)
    own = [
        "--set-string",
        r"review.ingress.annotations.nginx\.ingress\.kubernetes\.io/proxy-body-size=9m",
    ]
    assert _ingress("review", *own)["metadata"]["annotations"][size] == "9m"


def test_grpc_from_outside_shows_a_certificate() -> None:
    off = [
        "--set-string",
        r"attention.ingress.annotations.nginx\.ingress\.kubernetes\.io/auth-tls-verify-client=off",
    ]
    for options in ([], off):
        ingress = _ingress("attention", *options)
        annotations = ingress["metadata"]["annotations"]
        assert annotations["nginx.ingress.kubernetes.io/backend-protocol"] == "GRPC"
        assert annotations["nginx.ingress.kubernetes.io/auth-tls-verify-client"] == "on"
        assert (
            annotations["nginx.ingress.kubernetes.io/auth-tls-secret"] == "atlas/attention-callers"
        )
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        assert path["backend"]["service"]["port"] == {"name": "grpc"}


def test_prefects_page_is_behind_the_proxy_that_knows_people() -> None:
    (path,) = _ingress("prefect")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] == "site-atlasloop-prefect-proxy"
    proxy = container(render("production"), "prefect-proxy")
    assert "--allowed-group=atlas-managers" in proxy["args"]
    assert "--upstream=http://site-atlasloop-prefect:4200" in proxy["args"]
    doors = {
        one["metadata"]["name"]
        for one in of_kind(render("production"), "NetworkPolicy")
        if "-ingress-to-" in one["metadata"]["name"]
    }
    assert doors == {
        f"site-atlasloop-ingress-to-{to}" for to in ("review", "prefect-proxy", "attention")
    }
    plain = ["--set", "prefect.oidc.enabled=false"]
    (path,) = _ingress("prefect", *plain)["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] == "site-atlasloop-prefect"


def test_migration_runs_once_before_an_upgrade_and_stops_a_rollback_that_cannot_be() -> None:
    for values, first in (("trial", "post-install"), ("production", "pre-install")):
        (job,) = [
            one for one in of_kind(render(values), "Job") if "migrate" in one["metadata"]["name"]
        ]
        hooks = job["metadata"]["annotations"]["helm.sh/hook"].split(",")
        assert hooks == [first, "pre-upgrade", "pre-rollback"]


def test_helm_test_asks_every_service() -> None:
    pods = [
        one
        for one in of_kind(render("trial"), "Pod")
        if one["metadata"]["annotations"]["helm.sh/hook"] == "test"
    ]
    names = sorted(pod["metadata"]["name"].rpartition("-")[2] for pod in pods)
    assert names == ["attention", "doctor", "prefect", "review", "triton"]


# What is refused

REQUIRED = [
    ("trial", ["global.imageRegistry="], "global.imageRegistry is required"),
    ("trial", ["database.existingSecret="], "database.existingSecret is required"),
    ("trial", ["review.existingSecret="], "review.existingSecret is required"),
    ("trial", ["global.requireDigests=true"], "digest is required"),
    ("trial", ["database.mode=external"], "host"),
    ("production", ["database.host="], "host"),
    (
        "production",
        ["database.sslmode=verify-ca", "global.caBundle.configMap="],
        "global.caBundle.configMap is required with database.sslmode verify-ca",
    ),
    ("production", ["review.ingress.tlsSecret="], "review.ingress.tlsSecret is required"),
    ("production", ["review.ingress.host="], "review.ingress.host is required"),
    ("production", ["prefect.ingress.tlsSecret="], "prefect.ingress.tlsSecret is required"),
    ("production", ["prefect.ingress.host="], "prefect.ingress.host is required"),
    *(
        (values, [f"{name}.existingSecret="], f"{name}.existingSecret is required")
        for values in VALUES
        for name in ("prefect.auth", "triton.modelControl")
    ),
    ("production", ["attention.ingress.clientAuthority="], "clientAuthority is required"),
    ("production", ["attention.ingress.tlsSecret="], "attention.ingress.tlsSecret is required"),
    ("production", ["prefect.ingress.enabled=false"], "prefect.ingress.enabled is required"),
    *(
        ("production", [f"prefect.oidc.{name}="], f"prefect.oidc.{name} is required")
        for name in ("issuer", "clientId", "existingSecret")
    ),
    *(
        ("production", [f"prefect.oidc.{name}=null"], f"prefect.oidc.{name} is required")
        for name in ("allowedGroups", "cidrs")
    ),
    ("trial", ["flows.settings.catalog_url=x"], "catalog_url"),
    ("trial", ["flows.settings.promotion_margin=2"], "promotion_margin"),
    ("production", ["triton.autoscaling.prometheusAddress="], "prometheusAddress is required"),
    ("production", ["images.tritonGpu.digest="], "images.tritonGpu.digest is required"),
    ("trial", ["attention.settings.nonsense=1"], "nonsense"),
    ("trial", ["attention.settings.listen=x"], "listen"),
    ("trial", ["review.settings.insecure=true"], "insecure"),
    ("trial", ["triton.target=tpu"], "triton.target"),
    ("trial", ["images.flows.tag=latest"], "images.flows.tag"),
    ("trial", ["security.runAsUser=0"], "security.runAsUser"),
    ("trial", ["nonsense=1"], "nonsense"),
]


@pytest.mark.parametrize(("values", "settings", "said"), REQUIRED, ids=by_id)
def test_what_cannot_work_is_refused_by_helm(values: str, settings: list[str], said: str) -> None:
    options = [option for setting in settings for option in ("--set", setting)]
    done = template(values, "1.32", *options)
    assert done.returncode != 0
    assert said in done.stderr.replace("/", ".")


def _schema() -> Manifest:
    schema: Manifest = json.loads((CHART / "values.schema.json").read_text())
    return schema


def _values() -> Manifest:
    values: Manifest = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every path in the values, with what stands there."""
    found = [(path, value)]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    return found


def _with(values: Manifest, path: tuple[str, ...], value: Any) -> Manifest:
    changed: Manifest = json.loads(json.dumps(values))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


FREE = {"nodeSelector", "podAnnotations", "annotations", "labels", "requests", "limits"} | {
    "ingressNamespace", "monitoringNamespace", "dnsNamespace", "pools"
}  # fmt: skip
"""Maps whose keys are the administrator's own."""


def test_the_schema_is_closed_everywhere() -> None:
    validator = jsonschema.Draft7Validator(_schema())
    values = _values()
    assert validator.is_valid(values)
    places = [path for path, value in _places(values) if isinstance(value, dict)]
    assert len(places) > 50
    for path in places:
        if not path or path[-1] not in FREE:
            assert not validator.is_valid(_with(values, (*path, "nonsense"), "x")), path


def test_every_value_has_a_type() -> None:
    validator = jsonschema.Draft7Validator(_schema())
    values = _values()
    for path, value in _places(values):
        if path:
            wrong = [["x"], {"a": ["b"]}, None, {"x": {"y": 1}}]
            wrong = [one for one in wrong if type(one) is not type(value)]
            for one in wrong:
                assert not validator.is_valid(_with(values, path, one)), (path, one)


def test_every_rule_of_the_schema_refuses_something() -> None:
    """Each pattern, bound and choice, with a value just outside of it."""
    validator = jsonschema.Draft7Validator(_schema())
    values = _values()
    tried = 0
    for path, schema in _leaves(_schema()):
        for one in _outside(schema):
            target = _with_made(values, path, one)
            assert not validator.is_valid(target), (path, one)
            tried += 1
    assert tried > 150


def _leaves(schema: Manifest, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Manifest]]:
    found = [] if "properties" in schema else [(path, schema)]
    for key, inner in schema.get("properties", {}).items():
        found += _leaves(inner, (*path, key))
    return found


def _outside(schema: Manifest) -> list[Any]:
    wrong: list[Any] = []
    if "enum" in schema:
        wrong.append("no such choice")
    if "pattern" in schema:
        wrong += ["\n not / possible!"]
    if "minimum" in schema:
        wrong.append(schema["minimum"] - 1)
    if "exclusiveMinimum" in schema:
        wrong.append(schema["exclusiveMinimum"])
    if "maximum" in schema:
        wrong.append(schema["maximum"] + 1)
    if schema.get("minItems"):
        wrong.append([])
    return wrong


def _with_made(values: Manifest, path: tuple[str, ...], value: Any) -> Manifest:
    """As `_with`, making maps on the way."""
    changed: Manifest = json.loads(json.dumps(values))
    place = changed
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return changed


def test_values_are_documented() -> None:
    """Every section begins with a comment."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith((" ", "#")):
            before = lines[number - 1]
            assert before.startswith("#") or before == "" or not before.strip(), line
