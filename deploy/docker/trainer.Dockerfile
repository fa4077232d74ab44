# Fine-tuning and export: the flows with torch and MONAI, for jobs on GPU nodes.
#   docker build -f deploy/docker/trainer.Dockerfile -t REGISTRY/atlasloop/trainer:VERSION .
#   docker build -f deploy/docker/trainer.Dockerfile --target sbom --output dist/sbom .
# Give PYTHON_IMAGE by digest for a build that can be repeated.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv /opt/atlasloop && python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0
COPY core core
COPY services services
COPY models/atlas_models models/atlas_models
COPY flows flows
COPY deploy/embedded deploy/embedded
# torch first and by itself: asked for together with others, pip may take another build. TORCH_INDEX
# names an index with the build for your CUDA version (or for CPU alone).
ARG TORCH_INDEX=https://pypi.org/simple
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/atlasloop/bin/pip install --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/atlasloop/bin/pip install --constraint constraints.txt ".[flows,models,kubernetes]" \
    && /opt/atlasloop/bin/pip uninstall --quiet --yes pip setuptools
RUN mkdir /sbom && /opt/sbom/bin/cyclonedx-py environment /opt/atlasloop \
        --output-format JSON --output-file /sbom/trainer.cdx.json

FROM scratch AS sbom
COPY --from=build /sbom/ /

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Atlas Loop: trainer" \
      org.opencontainers.image.description="Training, fine-tuning and export jobs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/atlasloop /opt/atlasloop
COPY --from=build /sbom/ /usr/share/atlasloop/
COPY deploy/docker/entrypoint.sh deploy/docker/healthcheck.py /opt/atlasloop/bin/
COPY models/demo /opt/atlasloop/models
# The root file system may be read-only: all that is written goes to /tmp and to mounted volumes.
ENV PATH=/opt/atlasloop/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba HOME=/tmp
ENV ATLASLOOP_HOME=/var/lib/atlasloop/home ATLASLOOP_STORE=/var/lib/atlasloop/store \
    ATLASLOOP_MODELS_DIR=/opt/atlasloop/models PREFECT_HOME=/tmp/prefect DO_NOT_TRACK=1
USER 10001:10001
WORKDIR /tmp
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=8 \
    CMD ["sh", "-c", "python /opt/atlasloop/bin/healthcheck.py http \"${PREFECT_API_URL:-http://127.0.0.1:18020/api}/health\""]
ENTRYPOINT ["/opt/atlasloop/bin/entrypoint.sh"]
CMD ["python", "-m", "prefect", "flow-run", "execute"]
