"""A real PACS: Debian's Orthanc with its DICOMweb plug-in, on free ports, empty at the start."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from pacs_series import read_all
from ports import free_port
from pydicom import Dataset

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STORESCU = "/usr/bin/storescu"
"""dcmtk's: pynetdicom installs one of the same name."""

USER, PASSWORD = "atlas", "a-password-of-the-tests"
START_S = 60


@dataclass
class Orthanc:
    """A running server.

    Attributes:
        http: port of its REST and DICOMweb services.
        dicom: of its AE, ORTHANC.
        receiver: where it sends what is moved to ATLASLOOP.
    """

    http: int
    dicom: int
    receiver: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {
            "Name": "Orthanc",
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomModalities": {"atlas": ["ATLASLOOP", "127.0.0.1", self.receiver]},
            "DicomAlwaysAllowFind": False,
            "OverwriteInstances": True,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "index"),
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(settings))
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([PROGRAM, file], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "orthanc.log").read_text()[-2000:])
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            return self.get("/system").ok
        except requests.ConnectionError:
            return False

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url(path), auth=(USER, PASSWORD), timeout=30)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http}{path}"

    @property
    def dicomweb(self) -> str:
        return self.url("/dicom-web")

    def put(self, images: list[Dataset], folder: Path) -> None:
        """Have it store images, as dcmtk's `storescu` sends them."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        storescu(self.dicom, "ORTHANC", folder)

    def clear(self) -> None:
        for study in self.get("/studies").json():
            requests.delete(self.url(f"/studies/{study}"), auth=(USER, PASSWORD), timeout=30)

    def objects(self, modality: str, folder: Path) -> list[Dataset]:
        """Everything of a modality, read back from files."""
        files = []
        folder.mkdir(parents=True, exist_ok=True)
        for series in self.get("/series").json():
            if self.get(f"/series/{series}").json()["MainDicomTags"]["Modality"] != modality:
                continue
            for one in self.get(f"/series/{series}").json()["Instances"]:
                files.append(folder / f"{one}.dcm")
                files[-1].write_bytes(self.get(f"/instances/{one}/file").content)
        return read_all(files)


def storescu(
    port: int, title: str, folder: Path, *options: str, caller: str = "STORESCU"
) -> subprocess.CompletedProcess[str]:
    """Send a folder with dcmtk."""
    if not Path(STORESCU).exists():
        pytest.skip("dcmtk is missing: make setup-pacs")
    return subprocess.run(
        [
            *(STORESCU, "-aet", caller, "-aec", title, *options, "127.0.0.1", str(port)),
            *("+sd", "+r", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    server = Orthanc(free_port(), free_port(), free_port(), folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if not all(path.exists() for path in (PROGRAM, PLUGIN, Path(STORESCU))):
        pytest.skip("Orthanc, its DICOMweb plug-in or dcmtk is missing: make setup-pacs")
    with running(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """The server of the session, empty and up."""
    if orthanc_server.process is None:
        orthanc_server.start()
    orthanc_server.clear()
    return orthanc_server
