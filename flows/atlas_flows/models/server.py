"""The Triton that serves this site's models: the embedded one, or one that runs elsewhere."""

from __future__ import annotations

from atlas_embedded.triton_models import TritonModels, repository_of
from atlas_models.serving import TritonRepository

from atlas_flows.models.store import ModelStore
from atlas_flows.settings import Places


def model_repository(here: Places) -> TritonRepository:
    """What Triton serves from.

    Raises:
        ConfigurationError: ``ATLASLOOP_MODEL_REPOSITORY`` is no repository that was prepared.
    """
    if here.model_repository is None:
        return repository_of(here.embedded)
    return TritonRepository.prepared(here.model_repository)


def triton_models(here: Places) -> TritonModels:
    """The server and the repository that it serves.

    Raises:
        ConfigurationError: see `model_repository`.
    """
    key = here.triton_control_key
    return TritonModels(
        here.triton_address,
        model_repository(here),
        here.triton_load_timeout_s,
        tls=here.triton_tls,
        control_key=None if key is None else key.get_secret_value(),
    )


def model_store(here: Places) -> ModelStore:
    """Every version that lies at this site.

    Raises:
        ConfigurationError: see `model_repository`.
    """
    return ModelStore(here.model_store, here.embedded.models_dir, model_repository(here))
