"""MkDocs hook: the pages under `reference/` that are written out of the code at build time."""

from __future__ import annotations

import cli_page
import grpc_page
import rest_page
import settings_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {
    "reference/cli.md": cli_page.markdown,
    "reference/settings.md": settings_page.markdown,
    "reference/grpc.md": grpc_page.markdown,
    "reference/rest.md": rest_page.markdown,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for path, markdown in PAGES.items():
        files.append(File.generated(config, path, content=markdown()))
    return files
