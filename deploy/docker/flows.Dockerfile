# Flows, the atlasloop command, the Prefect server and its Kubernetes worker. No torch.
#   docker build -f deploy/docker/flows.Dockerfile -t REGISTRY/atlasloop/flows:VERSION .
#   docker build -f deploy/docker/flows.Dockerfile --target sbom --output dist/sbom .
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
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/atlasloop/bin/pip install --constraint constraints.txt ".[flows,kubernetes]" \
    && /opt/atlasloop/bin/pip uninstall --quiet --yes pip setuptools \
    && find /opt/atlasloop -type d -name tests -prune -exec rm -rf {} +
RUN mkdir /sbom && /opt/sbom/bin/cyclonedx-py environment /opt/atlasloop \
        --output-format JSON --output-file /sbom/flows.cdx.json

FROM scratch AS sbom
COPY --from=build /sbom/ /

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Atlas Loop: flows" \
      org.opencontainers.image.description="Prefect server, worker, flows and the atlasloop command" \
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
    ATLASLOOP_MODELS_DIR=/opt/atlasloop/models PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
USER 10001:10001
WORKDIR /tmp
# One image, several programs. Each asks whether what it needs answers: the Prefect API, which is
# itself in the server's container.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=8 \
    CMD ["sh", "-c", "python /opt/atlasloop/bin/healthcheck.py http \"${PREFECT_API_URL:-http://127.0.0.1:18020/api}/health\""]
ENTRYPOINT ["/opt/atlasloop/bin/entrypoint.sh"]
CMD ["python", "-m", "atlas_flows.serve"]
