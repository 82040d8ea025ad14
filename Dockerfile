# check=skip=InvalidDefaultArgInFrom
# The image that runs in a cluster: discovery, ranks, coordinators and `helm test`.
#
#   docker build --target cpu  --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:... --build-arg TORCH_INDEX=... -t parctl:0.1.0 .
#   docker build --target cuda --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:... -t parctl:0.1.0-cuda .
#
# TORCH_INDEX is the index of CPU wheels that torch's install page names. It has no default: pip's
# own index has torch with CUDA, gigabytes that a machine without a GPU never loads.
# The base has no default: a build names it by digest, so that the same build is the same image.
# Packages keep the bytecode that pip makes of them: nobody can write it later, and every start of a
# rank or a reading would compile its modules again.
# `--sbom=true --provenance=mode=max` attach what is in it; the scan covers the build stages too.
ARG PYTHON_IMAGE
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
ARG BUILDKIT_SBOM_SCAN_STAGE=true

# The wheel, from the sources alone.
FROM ${PYTHON_IMAGE} AS wheel
ARG BUILDKIT_SBOM_SCAN_STAGE
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY cli cli
COPY launcher launcher
COPY planner planner
COPY recipes recipes
COPY runtime runtime
COPY topology topology
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# torch for CPUs, and the rest of the packages from pip's own index.
FROM ${PYTHON_IMAGE} AS packages-cpu
ARG BUILDKIT_SBOM_SCAN_STAGE
ARG TORCH_INDEX
COPY constraints.txt /build/constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/parctl \
 && /opt/parctl/bin/pip install --no-cache-dir -c /build/constraints.txt --index-url "${TORCH_INDEX:?is not set: name the index of CPU wheels, as at the top of the Dockerfile}" torch numpy \
 && /opt/parctl/bin/pip install --no-cache-dir -c /build/constraints.txt "$(ls /wheels/parctl-*.whl)[torch,kubernetes,parquet]"

# torch as it comes: its wheels bring CUDA, only the driver is the node's.
FROM ${PYTHON_IMAGE} AS packages-cuda
ARG BUILDKIT_SBOM_SCAN_STAGE
COPY constraints.txt /build/constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/parctl \
 && /opt/parctl/bin/pip install --no-cache-dir -c /build/constraints.txt "$(ls /wheels/parctl-*.whl)[torch,kubernetes,parquet]"

FROM ${PYTHON_IMAGE} AS runtime
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="parctl" \
      org.opencontainers.image.description="Plan, place and launch parallel training and inference from one recipe" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
ENV PATH=/opt/parctl/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /tmp
# a number: `runAsNonRoot` cannot check a name
USER 65532:65532
ENTRYPOINT ["parctl"]

FROM runtime AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/parctl /opt/parctl

FROM runtime AS cpu
COPY --from=packages-cpu /opt/parctl /opt/parctl
