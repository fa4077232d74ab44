"""A series out of a real Orthanc into the stack of `check_compose`, scored, and its labels back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import requests
from compose_stack import ORTHANC, PROJECT, REPOSITORY, CheckFailed, Stack, require, run, say

# The series of the tests is the series of this check.
sys.path.insert(0, str(REPOSITORY / "tests"))
from pacs_series import phantom_series

IMAGE = "ATLASLOOP_ORTHANC_IMAGE"
DEFAULT_IMAGE = "docker.io/orthancteam/orthanc:25.8.2"
NAME = f"{PROJECT}-orthanc"
USER = "atlas"
START_S = 120.0


@contextmanager
def _orthanc(password: str) -> Iterator[requests.Session]:
    """A PACS in the network `hospital`; a session at its REST service."""
    settings = {
        "Name": "Orthanc", "RemoteAccessAllowed": True, "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: password}, "OverwriteInstances": True,
        "StorageDirectory": "/var/lib/orthanc", "IndexDirectory": "/var/lib/orthanc",
        "Plugins": ["/usr/share/orthanc/plugins"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="atlasloop-orthanc-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        run(
            ["docker", "run", "--detach", "--rm", f"--name={NAME}",
             "--tmpfs=/var/lib/orthanc:mode=1777",
             f"--network={PROJECT}_hospital", "--network-alias=orthanc",
             f"--publish=127.0.0.1:{ORTHANC}:8042", f"--volume={folder}:/etc/orthanc:ro",
             os.environ.get(IMAGE, DEFAULT_IMAGE)],
        )  # fmt: skip
        try:
            with requests.Session() as session:
                session.auth = (USER, password)
                session.trust_env = False
                _await(session)
                yield session
        finally:
            subprocess.run(["docker", "kill", NAME], capture_output=True, check=False)


def _await(session: requests.Session) -> None:
    until = time.monotonic() + START_S
    while True:
        with suppress(requests.ConnectionError):
            if session.get(_url("/system"), timeout=10).ok:
                return
        require(time.monotonic() < until, "Orthanc does not answer")
        time.sleep(0.5)


def _url(path: str) -> str:
    return f"http://127.0.0.1:{ORTHANC}{path}"


def check_pacs(stack: Stack) -> None:
    """Pulled by DICOMweb and de-identified, scored, pushed as DICOM SEG into its own study."""
    with _orthanc(stack.secret("pacs_password")) as session:
        images = phantom_series()
        for image in images:
            content = BytesIO()
            image.save_as(content, enforce_file_format=True)
            answer = session.post(_url("/instances"), content.getvalue(), timeout=60)
            require(answer.ok, f"Orthanc refuses a slice: {answer.text}")
        study = str(images[0].StudyInstanceUID)
        for service, *command in (
            ("receiver", "pacs", "pull", "--study", study, "--dataset", "hospital"),
            ("flows", "score"),
            ("receiver", "pacs", "push"),
        ):
            say(f"$ atlasloop {' '.join(command)}")
            say(stack.inside(service, "atlasloop", *command).strip())
        series = [session.get(_url(f"/series/{one}"), timeout=30).json()
                  for one in session.get(_url("/series"), timeout=30).json()]  # fmt: skip
        kinds = sorted(one["MainDicomTags"]["Modality"] for one in series)
        if kinds != ["CT", "SEG"]:
            raise CheckFailed(f"Orthanc holds {kinds}")
        say(f"Orthanc holds {' and '.join(kinds)} of one study")
