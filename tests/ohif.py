"""The stock viewer OHIF, as npm has it built, served beside a PACS: DICOMweb is passed on."""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
from orthanc import PASSWORD, USER, Orthanc

PASSED = ("Accept", "Content-Type")


def _configuration(address: str) -> str:
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "dicomweb",
        "configuration": {
            "friendlyName": "Orthanc",
            "name": "orthanc",
            "qidoRoot": f"{address}/dicom-web",
            "wadoRoot": f"{address}/dicom-web",
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "bulkDataURI": {"enabled": True},
            "omitQuotationForMultipartRequest": True,
        },
    }
    settings = {
        "routerBasename": "/",
        "extensions": [],
        "modes": [],
        "showStudyList": True,
        "disableConfirmationPrompts": True,
        "dataSources": [source],
        "defaultDataSourceName": "dicomweb",
    }
    return f"window.config = {json.dumps(settings)};"


@contextmanager
def ohif_beside(server: Orthanc, dist: Path) -> Iterator[str]:
    """The address of the viewer.

    Args:
        dist: ``package/dist`` of the npm package ``@ohif/app``.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/dicom-web/"):
                self._pass_on()
            elif path == "/app-config.js":
                self._answer(200, _configuration(address).encode(), "text/javascript")
            else:
                file = (dist / path.lstrip("/")).resolve()
                if not (file.is_file() and file.is_relative_to(dist.resolve())):
                    file = dist / "index.html"
                kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                self._answer(200, file.read_bytes(), kind)

        def _pass_on(self) -> None:
            headers = {name: self.headers[name] for name in PASSED if name in self.headers}
            try:
                got = requests.get(
                    server.url(self.path),
                    headers=headers | {"Host": self.headers["Host"]},
                    auth=(USER, PASSWORD),
                    timeout=60,
                )
            except requests.ConnectionError:  # the viewer fetches ahead while the PACS goes away
                self.send_error(502)
                return
            kind = got.headers.get("Content-Type", "application/octet-stream")
            self._answer(got.status_code, got.content, kind)

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            with suppress(ConnectionError):  # the viewer may have gone on to another slice
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    address = f"http://127.0.0.1:{web.server_address[1]}"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        web.shutdown()
        web.server_close()
