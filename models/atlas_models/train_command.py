"""Training out of the catalog: what ``atlasloop models train`` and ``finetune`` run.

    train_from_catalog(request, *, store, catalog, on_progress=None) -> TrainOutcome

`TrainRequest` is a frozen pydantic value: every field has a default but `config`, so a command line
or a Prefect form builds it field by field:

    config: Path | str        YAML file, or the name of a shipped one ("demo/unet", "paper/nnunet")
    overrides: dict           fields of the `TrainingConfig` that replace the file's
    datasets: tuple[str, ...] only cases of these; empty: all
    sources: tuple[LabelSource, ...]   labels to learn from, default (ORIGINAL, REVISED)
    validation_share: float   of the cases, split by case id; 0: none (and no early stop)
    weights: Path | None      fine-tune from this weights file (or the folder of a model)
    run_folder: Path          checkpoints, curves, progress; a run continues where it was killed
    output: Path | None       folder of the exported model; None: `run_folder / "model"`
    version: int              t of the exported M_t
    parent: ModelRef | None   recorded in the provenance

`TrainOutcome` (frozen dataclass): `folder` (model.onnx, model.json, weights.safetensors,
provenance.json), `spec: ModelSpec`, `metrics: dict[str, float]` (loss, validation Dice by organ),
`provenance: dict[str, str]` (configuration, seeds, cases, label hashes, parent, libraries) - both
fit `atlas_core.records.Model` as they are; registering and promoting is the caller's business.

Raises only `AtlasError`s; nothing appears in `output` unless the whole run succeeded.
"""
