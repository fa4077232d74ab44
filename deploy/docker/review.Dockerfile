# The review service: HTTP on 18030, behind a proxy that brings TLS. No torch.
#   docker build -f deploy/docker/review.Dockerfile -t REGISTRY/atlasloop/review:VERSION .
#   docker build -f deploy/docker/review.Dockerfile --target sbom --output dist/sbom .
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
    /opt/atlasloop/bin/pip install --constraint constraints.txt ".[review]" \
    && /opt/atlasloop/bin/pip uninstall --quiet --yes pip setuptools \
    && find /opt/atlasloop -type d -name tests -prune -exec rm -rf {} +
RUN mkdir /sbom && /opt/sbom/bin/cyclonedx-py environment /opt/atlasloop \
        --output-format JSON --output-file /sbom/review.cdx.json

FROM scratch AS sbom
COPY --from=build /sbom/ /

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Atlas Loop: review" \
      org.opencontainers.image.description="HTTP review service and its page" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/atlasloop /opt/atlasloop
COPY --from=build /sbom/ /usr/share/atlasloop/
COPY deploy/docker/entrypoint.sh deploy/docker/healthcheck.py /opt/atlasloop/bin/
# The root file system may be read-only: all that is written goes to /tmp and to mounted volumes.
ENV PATH=/opt/atlasloop/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba HOME=/tmp
ENV ATLAS_REVIEW_LISTEN=0.0.0.0:18030 ATLAS_REVIEW_STORE=/var/lib/atlasloop/store \
    ATLAS_REVIEW_HOME=/var/lib/atlasloop/review
USER 10001:10001
WORKDIR /tmp
EXPOSE 18030
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["sh", "-c", "python /opt/atlasloop/bin/healthcheck.py http \"http://127.0.0.1:${ATLAS_REVIEW_LISTEN##*:}/readyz\""]
ENTRYPOINT ["/opt/atlasloop/bin/entrypoint.sh"]
CMD ["python", "-m", "atlas_review"]
