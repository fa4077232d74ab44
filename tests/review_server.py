"""A review service on phantoms, for tests and for working on its page.

As a program it makes a store of three phantoms with predictions in a folder and serves it:

    python tests/review_server.py FOLDER [--port 18030] [--cases 3] [--columns 128]

Sign in as ``admin``, ``ann`` or ``bob`` (annotators) or ``rita`` (reader), password `PASSWORD`.
The queue is filled. Run again on the same folder, it continues where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging import CroppedMapsWriter, Volume, content_sha256, write_volume
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_core.records import Case, Dataset, Label, LabelSource, OrganScore, Reading, Score
from atlas_core.review import Portion, RevisionQueue
from atlas_core.store import CaseStore
from atlas_review.auth import Accounts, Role
from lean_image import in_image
from numpy.typing import NDArray
from ports import free_port
from scipy import ndimage

PASSWORD = "correct horse battery"
PEOPLE = {
    "admin": Role.MANAGER,
    "ann": Role.ANNOTATOR,
    "bob": Role.ANNOTATOR,
    "rita": Role.READER,
}
MODELS = tuple(
    ModelRef(name=name, version=0, sha256=digit * 64)
    for name, digit in (("nnunet", "a"), ("swin_unetr", "b"), ("unet", "c"))
)
ENSEMBLE = ensemble_key(MODELS)
START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ReviewPlace:
    """A folder with everything that a review service works on."""

    folder: Path
    catalog: str | None = None
    """Address of the catalog; None: an SQLite file in the folder."""

    @property
    def catalog_url(self) -> str:
        return self.catalog or f"sqlite:///{self.folder.absolute()}/catalog.sqlite"

    @property
    def store(self) -> CaseStore:
        return CaseStore(self.folder / "store")

    @property
    def accounts(self) -> Accounts:
        return Accounts(self.folder / "review" / "accounts.json")

    def environment(self, **fields: object) -> dict[str, str]:
        """Environment of the service; `fields` are further settings."""
        settings = {
            "store": self.store.root.absolute(),
            "catalog_url": self.catalog_url,
            "home": (self.folder / "review").absolute(),
            "sheet_interval_s": 0,  # tests look at what requests leave in the store
            **fields,
        }
        return os.environ | {
            f"ATLAS_REVIEW_{name.upper()}": str(value) for name, value in settings.items()
        }


def seed_case(
    catalog: Catalog,
    store: CaseStore,
    seed: int,
    *,
    dataset: str = "Phantoms",
    columns: int = 64,
    original: tuple[str, ...] = (),
) -> Case:
    """One phantom with a prediction that misses part of the stomach and the liver, and attention
    there."""
    phantom = make_phantom(seed, grid=PhantomGrid(columns=columns, slice_mm=6.0))
    ct = Volume(phantom.ct, phantom.geometry)
    return seed_volume(catalog, store, ct, phantom.truth, seed, dataset=dataset, original=original)


def seed_volume(
    catalog: Catalog,
    store: CaseStore,
    ct: Volume,
    truth: NDArray[np.uint8],
    seed: int,
    *,
    dataset: str = "Phantoms",
    original: tuple[str, ...] = (),
) -> Case:
    """Any CT whose true labels are known, with such a prediction."""
    digest = content_sha256(ct)
    case = Case(
        id=f"{dataset}_{digest[:12]}",
        dataset=dataset,
        content_sha256=digest,
        shape=ct.geometry.shape,
        affine=ct.geometry.affine,
        source=f"phantom {seed}",
        imported_at=datetime.now(UTC),
    )
    store.write_ct(case.id, ct)
    labels = []
    for organ in original:
        mask = Volume((truth == ABDOMEN_ATLAS[organ].label).astype(np.uint8), case.geometry)
        stored = store.write_label(case.id, organ, LabelSource.ORIGINAL, mask)
        labels.append(
            _label(case, organ, LabelSource.ORIGINAL, stored.path, stored.sha256, 1, mask)
        )
    catalog.add_case(case, labels)
    predicted = _with_errors(truth, seed)
    _write_prediction(catalog, store, case, predicted, truth)
    return case


def _with_errors(truth: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """`truth` without one side of the stomach and of the liver."""
    predicted = truth.copy(order="F")
    for organ in ("stomach", "liver"):
        where = np.argwhere(truth == ABDOMEN_ATLAS[organ].label)
        cut = np.quantile(where[:, 0], 0.2 + 0.05 * (seed % 3))
        gone = where[where[:, 0] <= cut]
        predicted[tuple(gone.T)] = 0
    return predicted


def _write_prediction(
    catalog: Catalog,
    store: CaseStore,
    case: Case,
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
) -> None:
    sizes, labels = [], []
    with (
        store.new_prediction(case.id, Reading.PAPER, ENSEMBLE) as draft,
        CroppedMapsWriter(draft.folder, case.geometry, slope=1 / 136) as maps,
        CroppedMapsWriter(draft.folder, case.geometry) as members,
    ):
        # One model has it right, one as the ensemble, and one finds nothing.
        for ref, label_map in zip(MODELS[:2], (truth, predicted), strict=True):
            path = draft.member_label_path(ref)
            path.parent.mkdir(exist_ok=True)
            members.add(path, (0, 0, 0), np.asfortranarray(label_map))
        members.finish()
        sha256 = write_volume(draft.pseudo_label_path, predicted, case.geometry)
        for organ in ABDOMEN_ATLAS:
            wrong = (predicted == organ.label) != (truth == organ.label)
            border = _border(predicted == organ.label)
            attention = np.asfortranarray((wrong * 100 + border * 12).astype(np.uint8))
            maps.add(draft.attention_path(organ.name), (0, 0, 0), attention)
            voxels = float(attention.sum()) / 136
            pseudo_voxels = int((predicted == organ.label).sum())
            sizes.append(
                OrganScore(
                    organ=organ.name,
                    attention_voxels=voxels,
                    attention_ml=voxels * case.geometry.voxel_ml,
                    pseudo_label_ml=pseudo_voxels * case.geometry.voxel_ml,
                    disagreement=float(wrong.sum()) / max(1.0, pseudo_voxels + float(wrong.sum())),
                    expected_ml=pseudo_voxels * case.geometry.voxel_ml,
                    attended_ml=float(wrong.sum()) * case.geometry.voxel_ml,
                )
            )
        maps.finish()
        draft.result_path.write_text("{}")
    stored = store.relative(store.pseudo_label_path(case.id, Reading.PAPER, ENSEMBLE))
    for organ in ABDOMEN_ATLAS:
        mask = Volume((predicted == organ.label).astype(np.uint8), case.geometry)
        labels.append(
            _label(case, organ.name, LabelSource.PSEUDO, stored, sha256, organ.label, mask)
        )
    score = Score(
        case_id=case.id,
        reading=Reading.PAPER,
        ensemble=ENSEMBLE,
        models=MODELS,
        organs=tuple(sizes),
        seconds=1.0,
        created_at=datetime.now(UTC),
    )
    catalog.record_score(score, labels)


def _border(organ: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels beside the organ."""
    border = np.zeros_like(organ, order="F")
    for box in ndimage.find_objects(organ.astype(np.uint8)):
        near = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        border[near] = ndimage.binary_dilation(organ[near]) & ~organ[near]
    return border


def _label(
    case: Case,
    organ: str,
    source: LabelSource,
    path: str,
    sha256: str,
    value: int,
    mask: Volume,
) -> Label:
    voxels = int(mask.voxels.sum())
    return Label(
        case_id=case.id,
        organ=organ,
        source=source,
        path=path,
        value=value,
        sha256=sha256,
        voxels=voxels,
        volume_ml=voxels * case.geometry.voxel_ml,
        models=MODELS if source is LabelSource.PSEUDO else (),
        created_at=datetime.now(UTC),
    )


def make_place(
    folder: Path, cases: int = 3, columns: int = 64, catalog: str | None = None
) -> ReviewPlace:
    """Make phantoms with predictions, accounts, and a full queue; what exists already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    place = ReviewPlace(folder, catalog)
    for name, role in PEOPLE.items():
        if name not in {user.name for user in place.accounts.content().users}:
            place.accounts.add_user(name, PASSWORD, (role,))
    with Catalog.open(place.catalog_url) as opened:
        opened.add_dataset(Dataset(name="Phantoms", title="Phantoms", licence="CC0-1.0"))
        opened.add_dataset(Dataset(name="Others", title="Others", licence="CC-BY-4.0"))
        if not opened.cases():
            for seed in range(cases):
                seed_case(
                    opened,
                    place.store,
                    seed,
                    dataset="Others" if seed == 2 else "Phantoms",
                    columns=columns,
                    original=("spleen",) if seed == 0 else (),
                )
            RevisionQueue(opened).open_tasks(Portion(share=1.0), "admin")
    return place


@dataclass
class RunningReview:
    """A running service in a process of its own."""

    place: ReviewPlace
    url: str
    process: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def client(self, user: str | None = None) -> Iterator[httpx.Client]:
        """An HTTP client, signed in as `user`."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            if user is not None:
                answer = client.post(
                    "/api/v1/session", json={"username": user, "password": PASSWORD}
                ).raise_for_status()
                client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
            yield client


@contextlib.contextmanager
def running_review(
    place: ReviewPlace, *, port: int | None = None, log: Path | None = None, **fields: object
) -> Iterator[RunningReview]:
    """The service over `place`, stopped at the end."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    variables = place.environment(listen=f"127.0.0.1:{port}", **fields)
    with (log or place.folder / f"review-{port}.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "atlas_review"],
            env=in_image("review", variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await(url, process, Path(output.name))
        yield RunningReview(place, url, process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        assert process.poll() is None, f"the service ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"the service does not start: {log.read_text()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def review_place(tmp_path_factory: pytest.TempPathFactory) -> ReviewPlace:
    """Three small phantoms with predictions."""
    return make_place(tmp_path_factory.mktemp("review"))


@pytest.fixture(scope="session")
def review(review_place: ReviewPlace) -> Iterator[RunningReview]:
    """One service for the session."""
    with running_review(review_place) as running:
        yield running


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=18030)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--columns", type=int, default=128)
    options = parser.parse_args()
    # When a signal ends it, the service must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    place = make_place(options.folder, options.cases, options.columns)
    with (
        running_review(place, port=options.port) as running,
        contextlib.suppress(KeyboardInterrupt),
    ):
        sys.stdout.write(f"{running.url}  sign in as {', '.join(PEOPLE)} with {PASSWORD!r}\n")
        sys.stdout.flush()
        running.process.wait()


if __name__ == "__main__":
    main()
