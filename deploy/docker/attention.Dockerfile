# The attention service: gRPC on 18010, metrics on 18011. No torch.
#   docker build -f deploy/docker/attention.Dockerfile -t REGISTRY/atlasloop/attention:VERSION .
#   docker build -f deploy/docker/attention.Dockerfile --target sbom --output dist/sbom .
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
    /opt/atlasloop/bin/pip install --constraint constraints.txt ".[attention]" \
    && /opt/atlasloop/bin/pip uninstall --quiet --yes pip setuptools \
    && find /opt/atlasloop -type d -name tests -prune -exec rm -rf {} +
RUN mkdir /sbom && /opt/sbom/bin/cyclonedx-py environment /opt/atlasloop \
        --output-format JSON --output-file /sbom/attention.cdx.json

FROM scratch AS sbom
COPY --from=build /sbom/ /

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Atlas Loop: attention" \
      org.opencontainers.image.description="gRPC attention service" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/atlasloop /opt/atlasloop
COPY --from=build /sbom/ /usr/share/atlasloop/
COPY deploy/docker/entrypoint.sh deploy/docker/healthcheck.py /opt/atlasloop/bin/
# The root file system may be read-only: all that is written goes to /tmp and to mounted volumes.
ENV PATH=/opt/atlasloop/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba HOME=/tmp
ENV ATLAS_ATTENTION_LISTEN=0.0.0.0:18010 ATLAS_ATTENTION_METRICS_LISTEN=0.0.0.0:18011 \
    ATLAS_ATTENTION_ALLOW_REMOTE=true ATLAS_ATTENTION_STORE=/var/lib/atlasloop/store
USER 10001:10001
WORKDIR /tmp
EXPOSE 18010 18011
# SERVING means that every model answered a real inference.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["sh", "-c", "python /opt/atlasloop/bin/healthcheck.py grpc \"127.0.0.1:${ATLAS_ATTENTION_LISTEN##*:}\""]
ENTRYPOINT ["/opt/atlasloop/bin/entrypoint.sh"]
CMD ["python", "-m", "atlas_attention"]
