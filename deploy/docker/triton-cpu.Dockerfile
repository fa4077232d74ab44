# Triton for machines without a GPU: the server binary out of NVIDIA's wheel, whose Python backend runs
# the models by OpenVINO (docs/decisions/0001). With a GPU use NVIDIA's image instead: see images.triton
# in the chart's values, and compose.gpu.yaml.
#   docker build -f deploy/docker/triton-cpu.Dockerfile -t REGISTRY/atlasloop/triton-cpu:VERSION .
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
COPY constraints-triton.txt /src/
# numpy < 2: with a newer one this backend loads every model and answers zeros. The wheel's own client
# and OpenVINO's telemetry are left out by --no-deps.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv /opt/triton && python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0 \
    && /opt/triton/bin/pip install --constraint /src/constraints-triton.txt numpy onnxruntime \
    && /opt/triton/bin/pip install --constraint /src/constraints-triton.txt --no-deps \
        openvino nvidia-pytriton \
    && mkdir /sbom && /opt/sbom/bin/cyclonedx-py environment /opt/triton \
        --output-format JSON --output-file /sbom/triton-cpu.cdx.json \
    && /opt/triton/bin/pip uninstall --quiet --yes pip setuptools
# The stub process of this Python lies where the server looks for it.
RUN server=/opt/triton/lib/python3.11/site-packages/pytriton/tritonserver \
    && ln -s ../../python_backend_stubs/3.11/triton_python_backend_stub "$server/backends/python/" \
    && rm -rf "$server"/python_backend_stubs/3.8 "$server"/python_backend_stubs/3.9 \
        "$server"/python_backend_stubs/3.10 "$server"/python_backend_stubs/3.12 \
        "$server"/python_backend_stubs/3.13

FROM scratch AS sbom
COPY --from=build /sbom/ /

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Atlas Loop: triton-cpu" \
      org.opencontainers.image.description="Triton Inference Server 2.51 with the Python backend, OpenVINO and ONNX Runtime, CPU only" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="BSD-3-Clause AND Apache-2.0"
COPY --from=build /opt/triton /opt/triton
COPY --from=build /sbom/ /usr/share/atlasloop/
# Where it lies in NVIDIA's image, so that both are started alike. Not by COPY, which would follow the
# link: a copied server does not find its libraries.
RUN ln -s /opt/triton/lib/python3.11/site-packages/pytriton/tritonserver /opt/tritonserver
COPY deploy/docker/healthcheck.py /opt/triton/bin/
# The stub embeds whichever Python comes first on PATH, and needs its shared library.
ENV PATH=/opt/triton/bin:/opt/tritonserver/bin:$PATH LD_LIBRARY_PATH=/usr/local/lib \
    VIRTUAL_ENV=/opt/triton PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8001 8002
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["python", "/opt/triton/bin/healthcheck.py", "http", "http://127.0.0.1:8002/metrics"]
# One broken model must not take the others out of service; explicit: models come and go when told.
ENTRYPOINT ["tritonserver"]
CMD ["--model-repository=/models", "--model-control-mode=explicit", "--load-model=*", \
     "--allow-http=false", "--disable-auto-complete-config", "--strict-readiness=false", "--exit-on-error=false"]
