"""A patient's name in every attribute of what a hospital sends: the vault has it, and nothing else
that is written, shown or logged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from orthanc import storescu
from pacs_series import NAME, hospital_series, plant_names
from ports import free_port
from written_texts import texts

SLICES = 4

RUN = [sys.executable, "-m", "atlas_flows.cli"]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[dict[str, str], subprocess.Popen[str]]]:
    """`atlasloop pacs receive`, as an administrator starts it; its environment."""
    environment = os.environ | {
        "ATLASLOOP_HOME": str(tmp_path / "home"),
        "ATLASLOOP_PACS_LISTEN": f"127.0.0.1:{free_port()}",
        "ATLASLOOP_PACS_CALLERS": json.dumps(["STORESCU"]),
        "ATLASLOOP_PACS_QUIET_S": "1",
        "ATLASLOOP_PACS_DATASET": "hospital",
    }
    with subprocess.Popen(
        [*RUN, "pacs", "receive"],
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "receiving as ATLASLOOP" in process.stdout.readline()
        try:
            yield environment, process
        finally:
            process.kill()


def test_a_name_that_a_hospital_sends_stays_in_the_vault(
    receiver: tuple[dict[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    environment, process = receiver
    images = hospital_series(SLICES)
    folder = tmp_path / "sent" / NAME
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        plant_names(image)
        image.save_as(folder / f"{NAME}_{number}.dcm", enforce_file_format=True)
    images[0].BurnedInAnnotation = "YES"
    images[0].SeriesInstanceUID, images[0].SOPInstanceUID = "1.2.3.4", "1.2.3.5"
    images[0].file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    images[0].save_as(folder / f"{NAME}_refused.dcm", enforce_file_format=True)
    port = int(environment["ATLASLOOP_PACS_LISTEN"].rpartition(":")[2])
    storescu(port, "ATLASLOOP", folder)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert "imported hospital_" in line, line
    listed = subprocess.run(
        [*RUN, "pacs", "list", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {one["state"] for one in json.loads(listed)} == {"imported", "refused"}
    process.terminate()
    shown = "".join([line, listed, process.stdout.read(), process.stderr.read()])
    home = tmp_path / "home"
    written = {p.relative_to(home).as_posix(): p for p in home.rglob("*") if p.is_file()}
    assert any(name.endswith("ct.nii.gz") for name in written)
    secrets = [NAME.lower(), str(images[1].StudyInstanceUID), str(images[1].SOPInstanceUID)]
    assert not [one for one in secrets if one in shown.lower() or one in " ".join(written).lower()]
    holders = {
        name
        for name, path in written.items()
        if any(one.encode() in text.lower() for text in texts(path) for one in secrets)
    }
    assert holders
    assert all(holder.startswith("pacs/vault/") for holder in holders)
