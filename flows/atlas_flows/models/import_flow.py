"""Flow `import-model`: a model from elsewhere, out of the landing folder, as a version.

It makes an ONNX graph, for which it needs torch but no GPU.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from pathlib import Path
from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.model_spec import ModelName, Resampling, Windows
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from pydantic import Field

from atlas_flows.models.server import model_store
from atlas_flows.models.version_import import VersionImport, import_version
from atlas_flows.runs import FilePath, LabelNames, OrganNames, landing_path
from atlas_flows.settings import Places

Word = Annotated[str, Field(min_length=1, max_length=200)]
"""A name of somebody else's."""


def _run_name() -> str:
    return str(runtime.flow_run.parameters["name"])


@flow(
    name="import-model",
    description="Imports a model from elsewhere as a version that can be promoted: an nnU-Net v2 "
    "result (also of TotalSegmentator), weights of a MONAI network, or an ONNX file with a "
    "description. Nothing in these files is run as code. It is not in service yet.",
    flow_run_name=_run_name,
    persist_result=False,
)
def import_model(
    name: ModelName,
    nnunet: FilePath | None = None,
    weights: FilePath | None = None,
    onnx: FilePath | None = None,
    config: FilePath | None = None,
    version: Annotated[int, Field(ge=0)] | None = None,
    folds: Annotated[str, Field(pattern=r"^(all|[0-9](,[0-9]){0,9})$", max_length=20)] = "all",
    configuration: Word | None = None,
    checkpoint: Word | None = None,
    orientation: Annotated[str, Field(pattern=r"^[RLAPSI]{3}$")] | None = None,
    labels: LabelNames | None = None,
    leave_out: Annotated[list[Word], Field(max_length=255)] | None = None,
    preset: Word | None = None,
    overlap: Annotated[float, Field(ge=0, le=0.75)] | None = None,
    mirrored: bool = False,
    resampling: Resampling = "linear",
    windows: Windows = "body",
    organs: OrganNames | None = None,
) -> str:
    """Import one; NAME@T of the version.

    Args:
        name: Name in Triton, one per architecture.
        nnunet: nnU-Net v2 result folder with plans.json, below the landing folder.
        weights: Weights of a MONAI network below the landing folder; needs config.
        onnx: ONNX file below the landing folder; needs config.
        config: YAML that describes the weights or the graph, below the landing folder.
        version: t of M_t. Empty: the next one of that name.
        folds: nnU-Net: all averages those there are; or 0,2.
        configuration: nnU-Net: of the plans. Empty: as it was trained.
        checkpoint: nnU-Net: file in each fold's folder. Empty: checkpoint_final.pth, or
            checkpoint_best.pth where there is no other.
        orientation: nnU-Net: of the training volumes, where plans do not say: RAS, LPS …
        labels: nnU-Net: for an organ, the names of the labels that mean it.
        leave_out: nnU-Net: labels that no organ includes, a lesion say.
        preset: nnU-Net: the dataset it was trained on.
        overlap: Of neighbouring windows. Empty: the service's.
        mirrored: Mean over all mirrored windows: 8 times the work.
        resampling: Of the CT to the model's grid; nnunet: cubic splines.
        windows: Over the body, or over the volume, where nnU-Net's own predictor lays them.
        organs: Which, in this order: models of one ensemble have the same. Empty: all of the atlas
            that the model knows.

    Raises:
        InvalidInput: no such combination; a path out of the landing folder.
        AtlasError: the files cannot be used, and why.
    """
    places = Places.read()

    def landed(given: str | None) -> Path | None:
        return None if given is None else landing_path(given, places)

    order = VersionImport(
        name=name,
        nnunet=landed(nnunet),
        weights=landed(weights),
        onnx=landed(onnx),
        config=landed(config),
        version=version,
        folds=folds,
        configuration=configuration,
        checkpoint=checkpoint,
        orientation=orientation,
        labels={organ: tuple(names) for organ, names in (labels or {}).items()},
        left_out=tuple(leave_out or ()),
        preset=preset,
        overlap=overlap,
        mirrored=mirrored,
        resampling=resampling,
        windows=windows,
        organs=None if organs is None else tuple(organs),
    )
    with Catalog.open(places.catalog_url) as catalog:
        imported = import_version(
            order, catalog, model_store(places), on_note=get_run_logger().warning
        )
    spec = imported.spec
    rows = [{"what": "organ", "name": organ, "why": ""} for organ in spec.organs]
    rows += [
        {"what": "left out", "name": left, "why": why} for left, why in imported.left_out.items()
    ]
    create_table_artifact(
        rows,
        key="imported-model",
        description=f"{spec.name}@{spec.version} ({spec.architecture}); "
        f"trained further: {imported.trainable}",
    )
    return f"{spec.name}@{spec.version}"
