"""Series on their way in: imported whole or not at all, whatever happens in between."""

from __future__ import annotations

import copy
import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.errors import ConfigurationError, Conflict, Unavailable, UnsupportedVolume
from atlas_core.pacs import Receipt, TransferState
from pacs_series import NAME, hospital_series
from pacs_site import Site
from pydicom import Dataset


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def send(site: Site, images: list[Dataset]) -> list[Receipt]:
    return [site.inbox.take(image) for image in images]


def test_a_series_becomes_a_case_once(site: Site) -> None:
    images = hospital_series(6)
    assert set(send(site, images)) == {Receipt.KEPT}
    series = site.series(images[0])
    done = site.inbox.take_in(series)
    assert done.state is TransferState.IMPORTED
    case = site.catalog.case(done.case_id or "")
    assert case.shape == (56, 48, 6)
    assert case.source == series
    assert set(send(site, images)) == {Receipt.KNOWN}
    assert site.inbox.take_in(series).case_id == case.id
    assert len(site.catalog.cases()) == 1
    assert not site.inbox.staged(series)


def test_a_series_lacks_images_until_the_last_has_come(site: Site) -> None:
    images = hospital_series(6)
    one = images[0]
    site.inbox.ask(one.SeriesInstanceUID, one.StudyInstanceUID, str(one.PatientID), expected=6)
    send(site, images[:4])
    half = site.inbox.take_in(site.series(one))
    assert (half.state, half.case_id) == (TransferState.RECEIVING, None)
    assert "4 of 6" in half.reason
    site.close()
    site.open()  # killed and started again
    assert send(site, images)[:4] == [Receipt.KNOWN] * 4
    assert site.inbox.take_in(site.series(one)).state is TransferState.IMPORTED


def test_a_study_that_changes_later_says_so_and_comes_whole(site: Site) -> None:
    images = hospital_series(6)
    series = site.series(images[0])
    send(site, images[:4])
    first = site.inbox.take_in(series)
    send(site, images[4:])
    changed = site.inbox.take_in(series)
    assert (changed.state, changed.case_id) == (TransferState.CHANGED, first.case_id)
    assert "again" in changed.reason
    one = images[0]
    site.inbox.ask(one.SeriesInstanceUID, one.StudyInstanceUID, "4711", again=True, expected=6)
    assert set(send(site, images)) == {Receipt.KEPT}
    whole = site.inbox.take_in(series)
    assert whole.state is TransferState.IMPORTED
    assert whole.case_id != first.case_id
    assert site.catalog.case(whole.case_id or "").shape[2] == 6


def test_a_duplicate_with_other_pixels_is_a_conflict(site: Site) -> None:
    images = hospital_series(6)
    send(site, images)
    other = copy.deepcopy(images[2])
    other.PixelData = bytes(len(other.PixelData))
    with pytest.raises(Conflict, match="other pixels"):
        site.inbox.take(other)
    refused = site.inbox.take_in(site.series(other))
    assert (refused.state, refused.case_id) == (TransferState.REFUSED, None)
    assert site.catalog.cases() == []


def test_a_duplicate_with_other_pixels_leaves_a_case_as_it_is(site: Site) -> None:
    images = hospital_series(6)
    send(site, images)
    done = site.inbox.take_in(site.series(images[0]))
    images[2].PixelData = bytes(len(images[2].PixelData))
    with pytest.raises(Conflict):
        site.inbox.take(images[2])
    changed = site.inbox.transfers.of_series(done.series)
    assert (changed.state, changed.case_id) == (TransferState.CHANGED, done.case_id)


def test_what_cannot_be_cleaned_is_refused_and_kept_nowhere(site: Site) -> None:
    image = hospital_series(1)[0]
    image.BurnedInAnnotation = "YES"
    with pytest.raises(UnsupportedVolume):
        site.inbox.take(image)
    refused = site.inbox.transfers.of_series(site.series(image))
    assert refused.state is TransferState.REFUSED
    assert "burnt" in refused.reason
    assert site.inbox.waiting() == []


def test_a_full_disk_is_said_and_gone_on_from(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    images = hospital_series(6)
    send(site, images[:3])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("atlas_core.pacs.inbox.replace_file", full)
        with pytest.raises(Unavailable, match="disk"):
            site.inbox.take(images[3])
    assert "full" in site.inbox.transfers.of_series(site.series(images[0])).reason
    lacking = site.inbox.take_in(site.series(images[0]))
    assert lacking.state is TransferState.RECEIVING
    assert send(site, images) == [Receipt.KNOWN] * 3 + [Receipt.KEPT] * 3
    assert site.inbox.take_in(lacking.series).state is TransferState.IMPORTED


def test_another_vault_is_refused(site: Site) -> None:
    send(site, hospital_series(2))
    site.close()
    for file in site.vault_file.parent.iterdir():
        file.unlink()
    with pytest.raises(ConfigurationError, match="vault"):
        site.open()


def test_the_vault_alone_knows_the_patient(site: Site) -> None:
    images = hospital_series(4)
    send(site, images)
    series = site.series(images[0])
    assert site.vault.original(series) == images[0].SeriesInstanceUID
    assert {str(one.PatientName) for one in site.vault.headers(series)} == {f"{NAME}^Anna"}
    assert stat.S_IMODE(site.vault_file.stat().st_mode) == 0o600
    site.inbox.take_in(series)
    site.close()
    holders = {
        path.relative_to(site.home).as_posix()
        for path in site.home.rglob("*")
        if path.is_file()
        and any(
            text in path.read_bytes()
            for text in (NAME.encode(), images[0].StudyInstanceUID.encode())
        )
    }
    assert all(holder.startswith("vault/") for holder in holders)
    site.open()
