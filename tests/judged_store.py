"""A small store with a known truth, as the loop leaves it: two iterations, two annotators, two
architectures. What is wrong in it was put there by hand, so every figure can be worked out."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
from atlas_core.assembly import Assemblies, PseudoLabelMap, assemble_case, choose_labels
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import CroppedMapsWriter, Volume, write_volume
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme
from atlas_core.records import Case, Dataset, Label, LabelSource, OrganScore, Reading, Score
from atlas_core.review import (
    NO_BASE,
    Annotator,
    LabelVersions,
    Portion,
    RevisionQueue,
    StaleBase,
    Submission,
)
from atlas_core.store import CaseStore
from numpy.typing import NDArray

ORGANS: OrganScheme = ABDOMEN_ATLAS.select(["liver", "spleen", "kidney_left"])
SHAPE = (24, 20, 16)
SPACING_MM = (10.0, 5.0, 2.0)
VOXEL_ML = 0.1
CASES = 20
GEOMETRY = VolumeGeometry.from_array(SHAPE, np.diag([*SPACING_MM, 1.0]))

LIVER = (slice(2, 12), slice(2, 12), slice(2, 12))  # 1000 voxels, 100 ml
SPLEEN = (slice(16, 20), slice(2, 7), slice(2, 7))  # 100 voxels, 10 ml
KIDNEY = (slice(16, 20), slice(12, 17), slice(4, 9))  # 100 voxels, 10 ml

START = datetime(2026, 1, 1, tzinfo=UTC)
SECONDS_PER_TASK = 90.0


@dataclass(frozen=True)
class JudgedStore:
    """Where everything is.

    Attributes:
        truth: folder in the layout of AbdomenAtlas.
        ensembles: keys of the two iterations, oldest first.
    """

    home: Path
    truth: Path
    ensembles: tuple[str, ...]

    @property
    def store(self) -> CaseStore:
        return CaseStore(self.home / "store")

    def open_catalog(self) -> Catalog:
        return Catalog.open(f"sqlite:///{self.home / 'catalog.sqlite'}")


def models(version: int) -> tuple[ModelRef, ...]:
    return tuple(
        ModelRef(name=name, version=version, sha256=f"{version}{digit}" * 32)
        for name, digit in (("nnunet", "a"), ("unet", "b"))
    )


def case_id(number: int) -> str:
    return f"case_{number:02d}"


def true_labels(number: int) -> NDArray[np.uint8]:
    """Every case has liver and spleen; the last two lack the left kidney."""
    labels = np.zeros(SHAPE, np.uint8, order="F")
    labels[LIVER] = ORGANS["liver"].label
    labels[SPLEEN] = ORGANS["spleen"].label
    if number < CASES - 2:
        labels[KIDNEY] = ORGANS["kidney_left"].label
    return labels


def pseudo_labels(number: int, version: int) -> NDArray[np.uint8]:
    """The truth, but for: slices of the liver (number of them: see `missing_slices`), and at M0 a
    left kidney in the last case, which has none."""
    labels = true_labels(number)
    labels[2 : 2 + missing_slices(number, version), 2:12, 2:12] = 0
    if version == 0 and number == CASES - 1:
        labels[KIDNEY] = ORGANS["kidney_left"].label
    return labels


def missing_slices(number: int, version: int) -> int:
    """Of the liver's ten: 8 and 6 in the first two cases, 1 in the others; half of it at M1."""
    at_first = {0: 8, 1: 6}.get(number, 1)
    return at_first if version == 0 else at_first // 2


def attention(number: int, version: int, organ: str) -> NDArray[np.uint8]:
    """Attended is what is wrong, and a corner of the spleen, which is right."""
    label = ORGANS[organ].label
    wrong = (pseudo_labels(number, version) == label) != (true_labels(number) == label)
    voxels = np.where(wrong, 100, 5).astype(np.uint8, order="F")
    if organ == "spleen":
        voxels[16:18, 2:4, 2:4] = 50
    return voxels


def write_judged_store(folder: Path) -> JudgedStore:
    """Make it in `folder`; a second or two."""
    home, truth = folder / "home", folder / "truth"
    keys = tuple(ensemble_key(models(version)) for version in (0, 1))
    made = JudgedStore(home, truth, keys)
    home.mkdir(parents=True)
    with made.open_catalog() as catalog:
        for name in ("north", "south"):
            catalog.add_dataset(Dataset(name=name, preset="phantoms"))
        for number in range(CASES):
            _add_case(catalog, made, number)
            _score(catalog, made.store, number, 0)
        _annotate(catalog, made.store)
        for number in range(CASES):
            assemble(catalog, made.store, number, 0)
        for number in range(CASES):
            _score(catalog, made.store, number, 1)
            assemble(catalog, made.store, number, 1)
            _keep_architectures(made.store, number)
    return made


def _add_case(catalog: Catalog, made: JudgedStore, number: int) -> None:
    name = case_id(number)
    catalog.add_case(
        Case(
            id=name,
            dataset="north" if number % 3 else "south",
            content_sha256=f"{number + 1:064x}",
            shape=SHAPE,
            affine=GEOMETRY.affine,
            source=f"{name}/ct.nii.gz",
            imported_at=START,
        )
    )
    made.store.write_ct(name, Volume(np.zeros(SHAPE, np.int16, order="F"), GEOMETRY))
    place = made.truth / name / "combined_labels.nii.gz"
    place.parent.mkdir(parents=True)
    write_volume(place, true_labels(number), GEOMETRY)


def _score(catalog: Catalog, store: CaseStore, number: int, version: int) -> None:
    name, key = case_id(number), ensemble_key(models(version))
    sizes = []
    with (
        store.new_prediction(name, Reading.PAPER, key) as draft,
        CroppedMapsWriter(draft.folder, GEOMETRY, slope=1 / 136) as maps,
    ):
        write_volume(draft.pseudo_label_path, pseudo_labels(number, version), GEOMETRY)
        for organ in ORGANS:
            voxels = attention(number, version, organ.name)
            maps.add(draft.attention_path(organ.name), (0, 0, 0), voxels)
            total = float(voxels.sum()) / 136
            sizes.append(
                OrganScore(
                    organ=organ.name,
                    attention_voxels=total,
                    attention_ml=total * VOXEL_ML,
                    pseudo_label_ml=1,
                    disagreement=total / (1000 + total),
                    expected_ml=1,
                    attended_ml=total * VOXEL_ML,
                )
            )
        maps.finish()
        draft.result_path.write_text("{}")
    catalog.record_score(
        Score(
            case_id=name,
            reading=Reading.PAPER,
            ensemble=key,
            models=models(version),
            organs=tuple(sizes),
            seconds=1,
            created_at=START + timedelta(days=10 * version, seconds=number),
        )
    )


def assemble(catalog: Catalog, store: CaseStore, number: int, version: int) -> None:
    """Assemble a case in the iteration of `version`, five days after it was scored: the revised
    labels of the catalog over the pseudo labels."""
    name, key = case_id(number), ensemble_key(models(version))
    path = store.pseudo_label_path(name, Reading.PAPER, key)
    scored_at = START + timedelta(days=10 * version)
    pseudo = [
        Label(
            case_id=name,
            organ=organ.name,
            source=LabelSource.PSEUDO,
            path=store.relative(path),
            value=organ.label,
            sha256=sha256(path.read_bytes()).hexdigest(),
            voxels=1,
            volume_ml=1,
            created_at=scored_at,
        )
        for organ in ORGANS
    ]
    labels = [*catalog.labels(name, LabelSource.REVISED), *pseudo]
    prediction = PseudoLabelMap(Reading.PAPER, key, store.relative(path))
    inputs = choose_labels(catalog.case(name), labels, prediction, {}, ORGANS)
    assembly = assemble_case(store, inputs)
    created_at = scored_at + timedelta(days=5)
    Assemblies(catalog).record(assembly.model_copy(update={"created_at": created_at}))


def _annotate(catalog: Catalog, store: CaseStore) -> None:
    """anna revises the liver of the first case rightly; berta, who did not see that, draws all but
    one slice of it; anna confirms the second case though it is wrong."""
    queue = RevisionQueue(catalog)
    queue.open_tasks(Portion(count=2), "chief")
    anna = Annotator("anna")
    first = queue.next(anna)
    assert first is not None
    assert first.case_id == case_id(0)
    versions = LabelVersions(catalog, clock=lambda: START + timedelta(days=1))
    liver = true_labels(0) == ORGANS["liver"].label
    version = submit(versions, store, "anna", 0, "liver", liver)
    queue.revise(first.id, anna, SECONDS_PER_TASK, {"liver": version})
    liver[11] = False
    with contextlib.suppress(StaleBase):  # kept beside anna's
        submit(versions, store, "berta", 0, "liver", liver)
    second = queue.next(anna)
    assert second is not None
    queue.confirm(second.id, anna, SECONDS_PER_TASK)


def submit(
    versions: LabelVersions,
    store: CaseStore,
    author: str,
    number: int,
    organ: str,
    mask: NDArray[np.bool_],
) -> str:
    """Hand in a revised label; its version."""
    voxels = np.asfortranarray(mask.astype(np.uint8))
    stored = store.write_submission(case_id(number), organ, Volume(voxels, GEOMETRY))
    return versions.submit(
        Submission(
            case_id=case_id(number),
            organ=organ,
            path=stored.path,
            sha256=stored.sha256,
            voxels=int(mask.sum()),
            volume_ml=int(mask.sum()) * VOXEL_ML,
            author=Annotator(author, second_reader=True),
            base=NO_BASE,
        )
    ).id


def _keep_architectures(store: CaseStore, number: int) -> None:
    """nnunet alone is right; unet alone is what the ensemble is."""
    for ref, labels in zip(models(1), (true_labels(number), pseudo_labels(number, 1)), strict=True):
        name = f"alone-{ref.name}-{ref.version}-{ref.sha256[:12]}.nii.gz"
        store.write_derived(
            case_id(number),
            name,
            lambda path, labels=labels: write_volume(path, labels, GEOMETRY),
        )
