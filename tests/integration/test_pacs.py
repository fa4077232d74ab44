"""A real PACS (Orthanc) and real senders (dcmtk): series in by both ways, labels back, and every
fault on the way.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import highdicom
import numpy as np
import pytest
from atlas_core.errors import ConfigurationError, InvalidInput, NotFound, Unavailable
from atlas_core.imaging import Volume, read_header
from atlas_core.pacs import (
    DimsePacs,
    PacsSettings,
    Pull,
    PullSummary,
    Push,
    Receiver,
    SeriesQuery,
    TransferState,
    connect,
    receiving,
)
from atlas_core.records import Label, LabelSource
from atlas_core.tls import TlsFiles
from atlas_embedded.access import make_access
from atlas_embedded.settings import EmbeddedSettings
from orthanc import PASSWORD, USER, Orthanc, storescu
from pacs_series import NAME, hospital_series, read_all, real_series
from pacs_site import Site
from ports import free_port
from pydicom import Dataset
from pydicom.uid import generate_uid

IMAGES = 6


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture(params=["dicomweb", "dimse"])
def settings(request: pytest.FixtureRequest, orthanc: Orthanc) -> PacsSettings:
    return settings_of(request.param, orthanc)


def settings_of(way: str, orthanc: Orthanc) -> PacsSettings:
    if way == "dicomweb":
        return PacsSettings(
            dicomweb_url=orthanc.dicomweb, dicomweb_user=USER, dicomweb_password=PASSWORD
        )
    return PacsSettings(
        peer=f"127.0.0.1:{orthanc.dicom}",
        peer_title="ORTHANC",
        listen=f"127.0.0.1:{orthanc.receiver}",
        timeout_s=10,
    )


def pull(site: Site, settings: PacsSettings, again: bool = False, **query: object) -> PullSummary:
    with receiving(settings, site.inbox):
        return Pull(connect(settings), site.inbox, "hospital", again).run(
            SeriesQuery.model_validate(query)
        )


def test_a_study_is_pulled_once(
    orthanc: Orthanc, settings: PacsSettings, site: Site, tmp_path: Path
) -> None:
    study = generate_uid()
    one, other = hospital_series(IMAGES, 1, study), hospital_series(IMAGES, 2, study)
    elsewhere = hospital_series(3, 3, patient="0815")
    orthanc.put([*one, *other, *elsewhere], tmp_path / "sent")
    summary = pull(site, settings, studies=[study])
    assert (summary.count(TransferState.IMPORTED), summary.skipped) == (2, 0)
    assert {case.shape for case in site.catalog.cases()} == {(56, 48, IMAGES)}
    assert len({transfer.patient for transfer in summary.series}) == 1
    assert pull(site, settings, studies=[study]).skipped == 2
    assert len(site.catalog.cases()) == 2


def test_queries_find_what_they_say(
    orthanc: Orthanc, settings: PacsSettings, tmp_path: Path
) -> None:
    wanted, thick, chest, report = (hospital_series(2, n, patient=f"4{n}") for n in range(4))
    for images, changes in (
        (thick, {"SliceThickness": 8.0, "AccessionNumber": "A2"}),
        (chest, {"BodyPartExamined": "CHEST", "StudyDate": "20200101"}),
        (report, {"Modality": "MR"}),
    ):
        for image in images:
            for keyword, value in changes.items():
                setattr(image, keyword, value)
    orthanc.put([*wanted, *thick, *chest, *report], tmp_path / "sent")

    def found(**query: object) -> set[str]:
        asked = SeriesQuery.model_validate(query)
        return {one.series for one in connect(settings).find(asked)}

    w, t, c = (images[0].SeriesInstanceUID for images in (wanted, thick, chest))
    assert found(patients=["40", "41", "42", "43", "44"]) == {w, t, c}
    assert found(dates="20240101-20241231") == {w, t}
    assert found(dates="-20210101") == {c}
    assert found(accessions=["A2"]) == {t}
    assert found(patients=["40", "42"], body_part="abdomen") == {w}
    assert found(studies=[wanted[0].StudyInstanceUID], accessions=["A2"]) == set()
    if settings.dicomweb_url:  # by C-FIND, this Orthanc does not tell the thickness
        assert found(patients=["40", "41"], max_thickness_mm=3) == {w}
    for refused in ({}, {"body_part": "ABDOMEN"}, {"patients": ["4*"]}):
        with pytest.raises(InvalidInput):
            found(**refused)


def test_a_pacs_that_is_away_is_said_and_the_pull_goes_on_later(
    orthanc: Orthanc, settings: PacsSettings, site: Site, tmp_path: Path
) -> None:
    images = hospital_series(IMAGES)
    orthanc.put(images, tmp_path / "sent")
    orthanc.stop()
    with pytest.raises(Unavailable, match="does not answer"):
        pull(site, settings, patients=["4711"])
    assert site.inbox.transfers.all() == []
    orthanc.start()
    assert pull(site, settings, patients=["4711"]).complete


def test_a_pull_that_breaks_in_the_middle_asks_for_the_rest_alone(
    orthanc: Orthanc, settings: PacsSettings, site: Site, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    images = hospital_series(IMAGES)
    orthanc.put(images, tmp_path / "sent")
    one = images[0]
    site.inbox.ask(one.SeriesInstanceUID, one.StudyInstanceUID, "4711", expected=IMAGES)
    for image in images[:4]:
        site.inbox.take(image)
    site.close()
    site.open()
    taken = []
    take = site.inbox.take

    def counting(image: Dataset) -> object:
        taken.append(image.SOPInstanceUID)
        return take(image)

    monkeypatch.setattr(site.inbox, "take", counting)
    assert pull(site, settings, patients=["4711"]).complete
    assert set(taken) == {image.SOPInstanceUID for image in images[4:]}


def test_a_pull_is_as_slow_as_it_is_told_to_be(
    orthanc: Orthanc, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.put(hospital_series(IMAGES), tmp_path / "sent")
    pauses: list[float] = []
    monkeypatch.setattr("atlas_core.pacs.dicomweb.time", SimpleNamespace(sleep=pauses.append))
    slow = settings_of("dicomweb", orthanc).model_copy(update={"images_per_s": 4.0})
    assert pull(site, slow, patients=["4711"]).complete
    assert pauses == [0.25] * IMAGES


def test_strangers_are_not_let_in(orthanc: Orthanc) -> None:
    wrong = PacsSettings(
        dicomweb_url=orthanc.dicomweb, dicomweb_user=USER, dicomweb_password="wrong"
    )
    with pytest.raises(ConfigurationError, match="let us in") as error:
        list(connect(wrong).find(SeriesQuery(patients=("4711",))))
    assert "wrong" not in str(error.value)
    stranger = PacsSettings(peer=f"127.0.0.1:{orthanc.dicom}", peer_title="ORTHANC", title="NOBODY")
    with pytest.raises((ConfigurationError, Unavailable)):
        list(connect(stranger).find(SeriesQuery(patients=("4711",))))


def label(site: Site, case_id: str) -> np.ndarray:
    """A pseudo label of liver and spleen on record; its label map."""
    geometry = read_header(site.store.ct_path(case_id)).geometry
    voxels = np.zeros(geometry.shape, np.uint8)
    voxels[10:30, 10:30, 1:-1], voxels[35:45, 20:30, 2:-1] = 1, 1
    stored = site.store.write_label(case_id, "liver", LabelSource.REVISED, Volume(voxels, geometry))
    site.catalog.add_labels(
        [
            Label(
                case_id=case_id,
                organ="liver",
                source=LabelSource.REVISED,
                path=stored.path,
                value=1,
                sha256=stored.sha256,
                voxels=int(voxels.sum()),
                volume_ml=float(voxels.sum() * geometry.voxel_ml),
                annotator="somebody",
                created_at=datetime.now(UTC),
            )
        ]
    )
    return voxels


def test_labels_go_back_to_the_study_that_they_belong_to(
    orthanc: Orthanc, settings: PacsSettings, site: Site, tmp_path: Path
) -> None:
    images = hospital_series(IMAGES)
    orthanc.put(images, tmp_path / "sent")
    (transfer,) = pull(site, settings, patients=["4711"]).series
    push = Push(connect(settings), site.vault, site.catalog, site.store)
    case_id = transfer.case_id or ""
    with pytest.raises(NotFound, match="no label"):
        push.run(case_id)
    voxels = label(site, case_id)
    assert push.run(case_id)
    assert not push.run(case_id)  # it is there
    assert push.run(case_id, again=True)
    (found,) = orthanc.objects("SEG", tmp_path / "back")
    assert found.StudyInstanceUID == images[0].StudyInstanceUID
    assert (found.PatientID, str(found.PatientName)) == ("4711", f"{NAME}^Anna")
    seg = highdicom.seg.Segmentation.from_dataset(found)
    assert [segment.SegmentLabel.lower() for segment in seg.SegmentSequence] == ["liver"]
    read = seg.get_pixels_by_source_instance(
        source_sop_instance_uids=[image.SOPInstanceUID for image in images],
        combine_segments=True,
        ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )
    # In the store the axes are those of the slices: columns, rows, slices.
    assert np.array_equal(read.transpose(2, 1, 0), voxels)


def test_a_case_of_files_cannot_be_pushed(orthanc: Orthanc, site: Site) -> None:
    push = Push(connect(settings_of("dicomweb", orthanc)), site.vault, site.catalog, site.store)
    with pytest.raises(NotFound):
        push.run("nobody_has_it")


# --- what others send to us ---


@pytest.fixture
def receiver(site: Site) -> Iterator[PacsSettings]:
    settings = PacsSettings(
        listen=f"127.0.0.1:{free_port()}", callers=("STORESCU",), timeout_s=10, max_image_mb=1
    )
    with Receiver(settings, site.inbox.take):
        yield settings


def save(images: list[Dataset], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def port_of(settings: PacsSettings) -> int:
    return int(settings.listen.rpartition(":")[2])


def test_what_is_sent_is_imported_when_it_is_quiet(
    receiver: PacsSettings, site: Site, tmp_path: Path
) -> None:
    images = hospital_series(IMAGES)
    done = storescu(port_of(receiver), "ATLASLOOP", save(images, tmp_path / "s"))
    assert done.returncode == 0, done.stderr
    site.inbox.take_in_quiet(3600)
    assert site.catalog.cases() == []
    site.inbox.take_in_quiet(0)
    assert [case.shape[2] for case in site.catalog.cases()] == [IMAGES]
    again = storescu(port_of(receiver), "ATLASLOOP", tmp_path / "s")
    assert again.returncode == 0
    assert site.inbox.waiting() == []


def test_real_slices_are_received(
    receiver: PacsSettings, site: Site, tmp_path: Path, shared_data: Path
) -> None:
    files = real_series(shared_data, tmp_path / "real")
    done = storescu(port_of(receiver), "ATLASLOOP", files[0].parent)
    assert done.returncode == 0, done.stderr
    site.inbox.take_in_quiet(0)
    (case,) = site.catalog.cases()
    assert case.shape == (512, 512, 41)
    headers = site.vault.headers(site.inbox.transfers.all()[0].series)
    assert {one.SOPInstanceUID for one in headers} == {
        one.SOPInstanceUID for one in read_all(files)
    }


@pytest.mark.parametrize(("caller", "title"), [("STRANGER", "ATLASLOOP"), ("STORESCU", "SOMEBODY")])
def test_only_those_named_may_send(
    receiver: PacsSettings, site: Site, tmp_path: Path, caller: str, title: str
) -> None:
    folder = save(hospital_series(1), tmp_path / "s")
    assert storescu(port_of(receiver), title, folder, caller=caller).returncode != 0
    assert site.inbox.waiting() == []


def test_by_tls_both_ends_prove_who_they_are(site: Site, tmp_path: Path) -> None:
    own, stranger = (EmbeddedSettings(home=tmp_path / name) for name in ("own", "stranger"))
    for embedded in (own, stranger):
        embedded.make_home()
        make_access(embedded)
    listen = f"127.0.0.1:{free_port()}"
    images = hospital_series(2)

    def sender(tls: TlsFiles | None) -> DimsePacs:
        return DimsePacs(
            PacsSettings(peer=listen, peer_title="ATLASLOOP", title="CT1", tls=tls, timeout_s=5)
        )

    settings = PacsSettings(listen=listen, callers=("CT1",), tls=own.triton_server_tls, timeout_s=5)
    with Receiver(settings, site.inbox.take):
        for tls in (None, stranger.triton_client_tls):
            with pytest.raises((Unavailable, ConfigurationError)):
                sender(tls).store(images)
        assert site.inbox.waiting() == []
        sender(own.triton_client_tls).store(images)
    assert site.inbox.count(site.series(images[0])) == 2


def _other_pixels(images: list[Dataset]) -> list[Dataset]:
    other = copy.deepcopy(images[2])
    other.PixelData = bytes(len(other.PixelData))
    return [*images, other]


def _burnt_in(images: list[Dataset]) -> list[Dataset]:
    images[1].BurnedInAnnotation = "YES"
    return images


def _too_large(images: list[Dataset]) -> list[Dataset]:
    images[1].Rows *= 512
    images[1].PixelData *= 512
    return images


@pytest.mark.parametrize("spoil", [_other_pixels, _burnt_in, _too_large])
def test_a_series_with_a_fault_is_no_case_and_its_sender_is_told(
    receiver: PacsSettings,
    site: Site,
    tmp_path: Path,
    spoil: Callable[[list[Dataset]], list[Dataset]],
) -> None:
    sent = save(spoil(hospital_series(IMAGES)), tmp_path / "s")
    site.inbox.ask(*_identity(sent), expected=IMAGES)
    done = storescu(port_of(receiver), "ATLASLOOP", sent, "-v")
    assert "rror" in done.stdout + done.stderr or done.returncode
    site.inbox.take_in_quiet(0)
    assert site.catalog.cases() == []
    (transfer,) = site.inbox.transfers.all()
    assert transfer.state in (TransferState.REFUSED, TransferState.RECEIVING)
    assert transfer.reason


def _identity(folder: Path) -> tuple[str, str, str]:
    one = read_all(sorted(folder.iterdir()))[0]
    return one.SeriesInstanceUID, one.StudyInstanceUID, one.PatientID


def test_an_association_that_breaks_leaves_a_part_and_goes_on(
    receiver: PacsSettings, site: Site, tmp_path: Path
) -> None:
    images = hospital_series(IMAGES)
    folder = save(images, tmp_path / "s")
    site.inbox.ask(*_identity(folder), expected=IMAGES)
    with through_a_line_that_breaks(port_of(receiver), after=20_000) as port:
        assert storescu(port, "ATLASLOOP", folder).returncode != 0
    series = site.series(images[0])
    assert 0 < site.inbox.count(series) < IMAGES
    site.inbox.take_in_quiet(0)
    half = site.inbox.transfers.of_series(series)
    assert half.state is TransferState.RECEIVING
    assert f"of {IMAGES}" in half.reason
    assert storescu(port_of(receiver), "ATLASLOOP", folder).returncode == 0
    site.inbox.take_in_quiet(0)
    assert site.inbox.transfers.of_series(series).state is TransferState.IMPORTED


class through_a_line_that_breaks:
    """A port that passes so many bytes on to a server, and then closes both ends."""

    def __init__(self, port: int, after: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port, self._left = port, after

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self._server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        client, _ = self._server.accept()
        upstream = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._pass, args=(upstream, client), daemon=True).start()
        while self._left > 0 and (data := client.recv(min(4096, self._left))):
            upstream.sendall(data)
            self._left -= len(data)
        for end in (client, upstream):
            with contextlib.suppress(OSError):  # the other side was faster
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                target.sendall(data)
        except OSError:
            return


TAKE_AND_DIE = """
import os, sys
from pathlib import Path
from pydicom import dcmread
sys.path.insert(0, {tests!r})
from pacs_site import Site
site = Site(Path({home!r}))
files = sorted(Path({sent!r}).iterdir())
for number, file in enumerate(files):
    if number == {last}:
        import atlas_core.pacs.inbox as inbox
        inbox.replace_file = lambda *a, **k: os._exit(9)
    site.inbox.take(dcmread(file))
"""


def test_killed_while_an_image_is_kept_it_goes_on(site: Site, tmp_path: Path) -> None:
    images = hospital_series(IMAGES)
    sent = save(images, tmp_path / "s")
    site.close()
    code = TAKE_AND_DIE.format(
        tests=str(Path(__file__).parents[1]), home=str(site.home), sent=str(sent), last=3
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    site.open()
    series = site.series(images[0])
    assert site.inbox.count(series) == 3
    site.inbox.take_in_quiet(0)
    assert site.catalog.cases() == []  # the vault has seen a fourth
    for image in images:
        site.inbox.take(image)
    site.inbox.take_in_quiet(0)
    assert [case.shape[2] for case in site.catalog.cases()] == [IMAGES]
