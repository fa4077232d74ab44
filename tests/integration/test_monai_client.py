"""The stock MONAI Label client 0.8.5 against the review service: with and without signing in, and
behind nginx."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_label, write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.pacs import Transfer, Transfers, TransferState
from atlas_core.review import LabelVersions, RevisionQueue, TaskFilter
from monai_label_clients import MakeClient, clients, monailabel, shaved
from ports import free_port
from review_server import ReviewPlace, RunningReview, make_place, running_review

pytestmark = pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms; each test works on a copy."""
    return make_place(tmp_path_factory.mktemp("monai"), cases=3, columns=32).folder


@pytest.fixture(params=["signed in", "insecure"])
def running(
    request: pytest.FixtureRequest, template: Path, tmp_path: Path
) -> Iterator[RunningReview]:
    place = ReviewPlace(shutil.copytree(template, tmp_path / "place"))
    with running_review(place, insecure=request.param == "insecure") as service:
        yield service


def revise_one_case(
    make: MakeClient, url: str, folder: Path, strategy: str, tag: str = "final"
) -> dict[str, Any]:
    """What 3D Slicer does: next case, download, label, submit it without a part of the liver."""
    sample: dict[str, Any] = make().next_sample(strategy, {})
    image = httpx.get(f"{url}/datastore/image", params={"image": sample["id"]}, trust_env=False)
    assert image.status_code == 200, image.text
    path, result = make().infer("pseudo_label", sample["id"], {})
    names = sorted(result["label_names"], key=lambda name: int(result["label_names"][name]))
    label = read_label(Path(path))
    voxels = label.voxels.copy(order="F")
    liver = names.index("liver") + 1
    voxels[voxels == liver] = shaved(voxels == liver)[voxels == liver] * liver
    edited = folder / "edited.nii.gz"
    write_volume(edited, voxels, label.geometry)
    info = [{"name": name, "idx": 500 + k} for k, name in enumerate(names)]
    saved = make().save_label(sample["id"], str(edited), tag, {"label_info": info})
    return {"sample": sample, "voxels": voxels, "saved": saved}


def test_next_case_label_and_submission(running: RunningReview, tmp_path: Path) -> None:
    make = clients(running.url, tmp_path / "client", "bob")
    info = make().info()
    assert info["labels"] == list(ABDOMEN_ATLAS.names)
    assert "config" not in info
    assert set(info["strategies"]) >= {"attention", "attention_liver", "attention_pancreas"}
    done = revise_one_case(make, running.url, tmp_path, "attention_liver")
    case_id = done["sample"]["name"].rpartition("_")[0]
    assert set(done["saved"]["versions"]) == {"liver"}
    with Catalog.open(running.place.catalog_url) as catalog:
        version = LabelVersions(catalog).in_force(case_id)["liver"]
        case = catalog.case(case_id)
    assert (version.id, version.author) == (done["saved"]["versions"]["liver"], "bob")
    stored = read_label(running.place.store.path(version.path))
    assert np.array_equal(stored.voxels, done["voxels"] == ABDOMEN_ATLAS["liver"].label)
    assert stored.geometry.same_grid(case.geometry)
    stats = make().info()["datastore"]
    assert (stats["total"], stats["completed"]) == (3, 1)
    label = make().download_label(case_id, "final")
    assert np.array_equal(read_label(Path(label)).voxels, done["voxels"])
    assert case_id in make().datastore()["objects"]
    assert make().train_status(check_if_running=True) is False


def test_the_queue_ends_with_nothing(running: RunningReview, tmp_path: Path) -> None:
    make = clients(running.url, tmp_path / "client", "ann")
    seen = [revise_one_case(make, running.url, tmp_path, "attention") for _ in range(3)]
    names = [one["sample"]["name"] for one in seen]
    assert len(set(names)) == 3  # Slicer caches images by name
    assert make().next_sample("attention", {}) == {}


def test_a_label_that_was_saved_before_the_end_is_a_revision(
    running: RunningReview, tmp_path: Path
) -> None:
    """Submitted again unchanged, the case does not end as one that needed no revision."""
    make = clients(running.url, tmp_path / "client", "ann")
    done = revise_one_case(make, running.url, tmp_path, "attention", tag="later")
    assert set(done["saved"]["versions"]) == {"liver"}
    again = make().save_label(done["sample"]["id"], str(tmp_path / "edited.nii.gz"))
    assert again["versions"] == {}
    with Catalog.open(running.place.catalog_url) as catalog:
        counts = RevisionQueue(catalog).counts(TaskFilter())
    assert (counts.revised, counts.confirmed) == (1, 0)


def test_two_users_never_overwrite_each_other(running: RunningReview, tmp_path: Path) -> None:
    ann = clients(running.url, tmp_path / "ann", "ann")
    bob = clients(running.url, tmp_path / "bob", "bob")
    first = ann().next_sample("attention", {})
    second = bob().next_sample("attention", {})
    assert first["name"] != second["name"]
    path, _ = ann().infer("pseudo_label", first["id"], {})
    label = read_label(Path(path))
    for make, cut in ((ann, 2), (bob, 3)):
        voxels = label.voxels.copy(order="F")
        voxels[:, : voxels.shape[1] // cut] = 0
        write_volume(tmp_path / "edited.nii.gz", voxels, label.geometry)
        if make is ann:
            make().save_label(first["id"], str(tmp_path / "edited.nii.gz"))
            continue
        with pytest.raises(monailabel.client.MONAILabelClientException, match="kept"):
            make().save_label(first["id"], str(tmp_path / "edited.nii.gz"))


def test_a_segment_that_is_no_organ_is_refused(running: RunningReview, tmp_path: Path) -> None:
    make = clients(running.url, tmp_path / "client", "ann")
    sample = make().next_sample("attention", {})
    path, _ = make().infer("pseudo_label", sample["id"], {})
    refused = monailabel.client.MONAILabelClientException
    with pytest.raises(refused, match="no organ of this atlas"):
        make().save_label(sample["id"], path, "final", {"label_info": [{"name": "tumour"}]})
    with pytest.raises(refused, match="stands for no segment"):
        make().save_label(sample["id"], path, "final", {"label_info": [{"name": "liver"}]})


def test_an_id_cannot_be_forged(running: RunningReview, tmp_path: Path) -> None:
    make = clients(running.url, tmp_path / "client", "ann")
    sample = make().next_sample("attention", {})
    head, _, signature = sample["id"].rpartition(".")
    forged = f"{head}.{signature[:-3]}AAA"
    other = "Others" if sample["name"].startswith("Phantoms") else "Phantoms"
    moved = f"{other}{sample['id'][sample['id'].index('_') :]}"
    for wrong in (forged, moved):
        answer = httpx.get(
            f"{running.url}/datastore/image", params={"image": wrong}, trust_env=False
        )
        assert answer.status_code in (401, 404)


NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off; client_max_body_size 300m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {url}; proxy_set_header Host $http_host; proxy_http_version 1.1; }}
  }}
}}
"""


@contextlib.contextmanager
def behind_nginx(url: str, folder: Path) -> Iterator[str]:
    """The service at `url` behind nginx; yields the address of nginx."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("NO NGINX: install Debian's package nginx-light to test behind a proxy")
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, url=url))
    process = subprocess.Popen([nginx, "-c", str(config), "-p", str(folder)])
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/healthz", trust_env=False).is_success:
                    break
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline, "nginx does not start"
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_through_nginx(running: RunningReview, tmp_path: Path) -> None:
    with behind_nginx(running.url, tmp_path / "nginx") as url:
        make = clients(url, tmp_path / "client", "bob")
        done = revise_one_case(make, url, tmp_path, "attention")
        assert set(done["saved"]["versions"]) == {"liver"}


def test_ohif_names_a_case_by_its_series(template: Path, tmp_path: Path) -> None:
    """Calls as OHIF's plug-in makes them: it knows the series that it shows, and no case."""
    place = ReviewPlace(shutil.copytree(template, tmp_path / "place"))
    with Catalog.open(place.catalog_url) as catalog:
        series = {case.id: f"2.25.{n}4711" for n, case in enumerate(catalog.cases(), start=1)}
        for case_id, uid in series.items():
            came = Transfer(
                series=uid,
                study=f"{uid}.1",
                patient="p1",
                dataset="hospital",
                state=TransferState.IMPORTED,
                case_id=case_id,
            )
            Transfers(catalog).ask(came)
    with (
        running_review(place, insecure=True) as service,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as ohif,
    ):
        sample = ohif.post("/activelearning/attention", json={}).json()
        uid = sample["SeriesInstanceUID"]
        assert uid in series.values() and sample["StudyInstanceUID"] == f"{uid}.1"
        params = {
            "result_extension": ".nrrd",
            "result_dtype": "uint16",
            "result_compress": False,
            "restore_label_idx": False,
        }
        answer = ohif.post(
            "/infer/pseudo_label",
            params={"image": uid, "output": "all"},
            files={"params": (None, json.dumps(params))},
            headers={"accept": "application/json, multipart/form-data"},
        )
        assert answer.status_code == 200, answer.text
        by_case = ohif.post(
            "/infer/pseudo_label", params={"image": sample["id"], "output": "image"}
        )
        start = answer.content.index(b"NRRD0")
        (tmp_path / "ohif.nrrd").write_bytes(
            answer.content[start : answer.content.rindex(b"\r\n--")]
        )
        (tmp_path / "case.nii.gz").write_bytes(by_case.content)
        ours, theirs = (read_label(tmp_path / name) for name in ("case.nii.gz", "ohif.nrrd"))
        assert np.array_equal(ours.voxels, theirs.voxels) and ours.voxels.any()
        saved = ohif.put(
            "/datastore/label",
            params={"image": uid},
            files={
                "params": (None, "{}"),
                "label": ("label.nrrd", (tmp_path / "ohif.nrrd").read_bytes()),
            },
        )
        assert saved.json() | {"image": uid, "versions": {}} == saved.json()  # nothing has changed
        unknown = ohif.post("/infer/pseudo_label", params={"image": "1.2.3", "output": "all"})
        assert unknown.status_code == 404
