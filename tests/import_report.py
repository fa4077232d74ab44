"""`make import-report`: what an import makes of every kind of file, and one JSON line at the end.

    python tests/import_report.py [--cases FOLDER] [--data FOLDER] [--heap FILES]

    files       files that were offered
    accounted   of them, those that the importer named with what became of them
    tracebacks  imports that ended in an error nobody foresaw

CASES holds a folder for each kind of file, whose ``gen.py`` writes ``data/`` with such files; the
generators run in a copy. DATA holds real files, with archives, which are unpacked. Each is imported
into an atlas of its own. Default: the folder that the tests take real volumes from (ATLASLOOP_DATA)
and the folder `cases` beside it. HEAP slices of as many patients as they make are made up besides,
mixed in one folder, as a dump of an archive has them.

Exit status 0 only if every file is accounted for and nothing ended in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, printable
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.store import CaseStore
from dicom_series import in_a_study, write_series
from pydicom import Dataset
from pydicom.uid import generate_uid
from real_data import real_data

REASON_SHOWN = 150
HEAP_SERIES = 50


@dataclass
class Tally:
    """The last line."""

    files: int = 0
    accounted: int = 0
    tracebacks: int = 0
    missing: list[str] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, default=real_data().parent / "cases")
    parser.add_argument("--data", type=Path, default=real_data())
    parser.add_argument("--heap", type=int, default=0, metavar="FILES")
    chosen = parser.parse_args(arguments)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="import-report-") as scratch:
        for name, folder in _folders(chosen.cases, chosen.data, Path(scratch), tally):
            _report(name, folder, Path(scratch), tally)
        if chosen.heap:
            heap = _heap(chosen.heap, Path(scratch, "heap"))
            _report(f"heap of {chosen.heap} slices", heap, Path(scratch), tally)
    sys.stdout.write(json.dumps(asdict(tally)) + "\n")
    return int(tally.accounted != tally.files or tally.tracebacks > 0)


def _folders(cases: Path, data: Path, scratch: Path, tally: Tally) -> Iterator[tuple[str, Path]]:
    """Name and folder of each import."""
    for folder in (cases, data):
        if not folder.is_dir():
            tally.missing.append(folder.name)
            _say(f"missing: no folder {folder.name}; set ATLASLOOP_DATA, or pass CASES= and DATA=")
    for generator in sorted(cases.glob("*/gen.py")):
        made = _generated(generator, scratch)
        if made is None:
            tally.missing.append(generator.parent.name)
        else:
            yield generator.parent.name, made
    for folder in sorted(inner for inner in data.glob("*") if inner.is_dir()):
        yield f"data: {folder.name}", folder
        for archive in sorted((*folder.rglob("*.tar.*"), *folder.rglob("*.zip"))):
            yield f"data: {archive.name}", _unpacked(archive, scratch)


def _generated(generator: Path, scratch: Path) -> Path | None:
    """What a generator writes, in a copy; None, said, if it cannot run here."""
    copy = scratch / "cases" / generator.parent.name
    shutil.copytree(generator.parent, copy, copy_function=shutil.copyfile)
    for library in generator.parents[1].glob("*.py"):
        shutil.copyfile(library, scratch / "cases" / library.name)
    done = subprocess.run(
        [sys.executable, "gen.py"], cwd=copy, capture_output=True, text=True, check=False
    )
    if done.returncode or not (copy / "data").is_dir():
        last = (done.stderr.strip().splitlines() or ["it wrote no data"])[-1]
        _say(f"\n{copy.name}: its generator cannot run here: {last}")
        return None
    return copy / "data"


def _heap(files: int, folder: Path) -> Path:
    """Slices of 64 × 64, of a new patient every 50, under names that say nothing."""
    folder.mkdir()
    voxels = np.random.default_rng(0)
    for number in range(0, files, HEAP_SERIES):
        shift, series = voxels.integers(0, 60, (64, 64)), generate_uid()

        def change(dataset: Dataset, k: int, shift: Any = shift, series: str = series) -> None:
            pixels = shift + k % 7
            pixels[8:56, 8:56] += 1000
            dataset.Rows = dataset.Columns = 64
            dataset.PixelData = pixels.astype("<i2").tobytes()
            dataset.SeriesInstanceUID, dataset.PatientID = series, series[-12:]

        slices = min(HEAP_SERIES, files - number)
        for k, file in enumerate(write_series(folder / "one", in_a_study(change), slices)):
            file.rename(folder / f"{(number + k) * 7919 % 1_000_003:07}")
    (folder / "one").rmdir()
    return folder


def _unpacked(archive: Path, scratch: Path) -> Path:
    target = scratch / "unpacked" / archive.name
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(target)
    else:
        with tarfile.open(archive) as opened_tar:
            opened_tar.extractall(target, filter="data")
    return target


def _report(name: str, folder: Path, scratch: Path, tally: Tally) -> None:
    """Imports one folder and prints what became of its files."""
    names = {printable(file.relative_to(folder).as_posix()) for file in _files(folder)}
    tally.files += len(names)
    _say(f"\n{name}: {len(names)} files")
    home = scratch / "atlases" / printable(name).replace("/", "_").replace(":", "")
    home.mkdir(parents=True)
    started = time.monotonic()
    try:
        with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
            summary = import_folder(folder, "report", catalog=catalog, store=CaseStore(home / "s"))
    except AtlasError as error:
        _say(f"  refused as a whole: {str(error)[:REASON_SHOWN]}")
        tally.accounted += len(names)
        return
    except Exception:
        traceback.print_exc(file=sys.stdout)
        tally.tracebacks += 1
        return
    finally:
        shutil.rmtree(home)
    _say(f"  {time.monotonic() - started:.1f} s")
    named = _show(summary)
    tally.accounted += len(names & named)
    tally.tracebacks += sum("please report it" in note.reason for note in summary.refused)
    for file in sorted(names - named):
        _say(f"  NOT ACCOUNTED FOR  {file}")


def _files(folder: Path) -> Iterator[Path]:
    for where, _, files in os.walk(folder):
        yield from (Path(where, file) for file in files)


def _show(summary: ImportSummary) -> set[str]:
    """Prints the fates, files of one reason together; returns the names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in summary.files:
        groups.setdefault((file.fate, file.reason), []).append(file.source)
    for (fate, reason), sources in sorted(groups.items()):
        more = f" (+{len(sources) - 1})" if len(sources) > 1 else ""
        _say(f"  {fate:9} {sources[0]}{more}  {reason[:REASON_SHOWN]}")
    for note in summary.warnings:
        _say(f"  {'look at':9} {note.source}  {note.reason[:REASON_SHOWN]}")
    for case in (*summary.taken, *summary.present):
        for remark in case.remarks:
            _say(f"  {'look at':9} {case.source}  {remark[:REASON_SHOWN]}")
    organs = Counter(organ for case in summary.taken for organ in case.organs)
    _say(f"  {len(summary.taken)} cases; original labels: {dict(organs)}")
    return {file.source for file in summary.files}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
