"""The receiver in the chart: read back into the class of its settings, and behind a policy of its
own."""

from __future__ import annotations

import pytest
from atlas_core.pacs import PacsSettings
from rendered_chart import container, environment, helm, of_kind, render

ON = (
    *("--set", "pacs.enabled=true", "--set", "pacs.existingSecret=hospital"),
    *("--set", "pacs.tlsSecret=hospital-tls", "--set", "pacs.cidrs={10.1.0.0/16}"),
    *("--set", "pacs.peer.cidrs={10.1.2.3/32}", "--set", "pacs.settings.peer=pacs.example.org:104"),
    *("--set", "pacs.settings.callers={PACS,CT1}"),
)


def test_its_settings_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(
        container(render("trial", "1.32", *ON), "receiver"),
        {"dicomweb-password": "s3cret", "catalog-password": "another"},
    )
    for name, value in given.items():
        if name.startswith("ATLASLOOP_PACS_"):
            monkeypatch.setenv(name, value)
    settings = PacsSettings()
    assert settings.listen == "0.0.0.0:11112"
    assert settings.allowed_callers == ("PACS", "CT1")
    assert (settings.peer, settings.dicomweb_url) == ("pacs.example.org:104", None)
    assert settings.tls is not None
    assert settings.vault_url is not None


def test_only_the_hospital_reaches_it_and_it_reaches_the_hospital_and_the_catalog_alone() -> None:
    (policy,) = [
        one
        for one in of_kind(render("trial", "1.32", *ON), "NetworkPolicy")
        if one["metadata"]["name"].endswith("-receiver")
    ]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (door,) = policy["spec"]["ingress"]
    assert door["from"] == [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
    assert [port["port"] for port in door["ports"]] == [11112]
    _, hospital = policy["spec"]["egress"]
    assert hospital["to"] == [{"ipBlock": {"cidr": "10.1.2.3/32"}}]


def test_the_flows_beside_it_open_the_same_vault_and_tell_prefect() -> None:
    manifests = render("trial", "1.32", *ON)
    receiver, flows = (container(manifests, name) for name in ("receiver", "pacs-flows"))
    secrets = dict.fromkeys(("dicomweb-password", "catalog-password", "auth-string"), "s3cret")
    given, theirs = environment(receiver, secrets), environment(flows, secrets)
    given.pop("ATLASLOOP_PACS_LISTEN")
    assert theirs.items() >= given.items()
    mounted = [{one["name"] for one in each["volumeMounts"]} for each in (receiver, flows)]
    assert mounted[1] - mounted[0] == {"landing", "prefect-secret"}
    to_prefect = [
        str(one["spec"])
        for one in of_kind(manifests, "NetworkPolicy")
        if "-to-prefect-" in one["metadata"]["name"]
    ]
    assert len(to_prefect) == 2 and all("receiver" in one for one in to_prefect)


def test_nobody_named_is_nobody_let_in() -> None:
    manifests = render("trial", "1.32", "--set", "pacs.enabled=true")
    (policy,) = [
        one
        for one in of_kind(manifests, "NetworkPolicy")
        if one["metadata"]["name"].endswith("-receiver")
    ]
    assert "ingress" not in policy["spec"]
    assert not any("receiver" in str(one) for one in render("trial"))


def test_secrets_are_no_values() -> None:
    refused = helm(
        *("template", "x", "deploy/helm/atlasloop", "--set", "pacs.enabled=true"),
        *("--set", "pacs.settings.dicomweb_password=secret"),
    )
    assert refused.returncode != 0
    assert "dicomweb_password" in refused.stderr
