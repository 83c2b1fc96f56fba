# How to build and run this: deploy/README.md.
ARG BASE=python:3.11-slim-bookworm
ARG WEIGHTS=models/demo/yolov8n-demo.pt

FROM ${BASE} AS base
# HOST 0.0.0.0 is every address of the container: `serve` needs YOLOPARD_API_KEYS, or YOLOPARD_ALLOW_ANONYMOUS=1.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    YOLOPARD_HOST=0.0.0.0 \
    YOLOPARD_ENGINES_DIR=/var/lib/yolopard/engines
WORKDIR /opt/yolopard
COPY pyproject.toml LICENSE ./
COPY deploy/base.lock deploy/
# With an empty package, pip installs Yolopard before the code is copied, so that new code does not reinstall anything.
# All packages from an index, including setuptools, have their hash in a lock (`make locks`).
RUN /usr/sbin/useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin yolopard \
 && install --directory "$YOLOPARD_ENGINES_DIR" \
 && python3 -m venv /opt/venv \
 && mkdir app && touch app/__init__.py \
 && pip install --no-cache-dir --require-hashes --no-deps --requirement deploy/base.lock \
 && pip install --no-cache-dir --no-deps --no-build-isolation --editable .
ENTRYPOINT ["yolopard"]

# Builds an engine. Also an image of its own, for other weights and settings than those built here.
FROM base AS build
ARG PIP_NO_CACHE_DIR=1
ARG PIP_EXTRA_INDEX_URL
ARG BUILD_LOCK=deploy/build.lock
COPY ${BUILD_LOCK} deploy/build.lock
RUN pip install --require-hashes --no-deps --requirement deploy/build.lock \
 && chown yolopard:yolopard "$YOLOPARD_ENGINES_DIR"
ARG WEIGHTS
ENV YOLOPARD_WEIGHTS=/opt/yolopard/${WEIGHTS}
COPY models/demo/samples models/demo/samples
COPY models/demo/scenes.py models/demo/
COPY ${WEIGHTS} ${WEIGHTS}
COPY app app
USER 10001
RUN yolopard build
CMD ["build"]

FROM base AS server
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", \
  "from os import environ; from urllib.request import urlopen; \
   urlopen(f'http://127.0.0.1:{environ.get(\"YOLOPARD_PORT\", 8000)}/healthz', timeout=4)"]
CMD ["serve"]

# Builds its engine on the GPU that it serves on. CUDA comes with the wheels of torch and TensorRT, and the driver from
# the host's NVIDIA Container Toolkit, so a base image of NVIDIA is not needed.
FROM server AS gpu
ARG PIP_NO_CACHE_DIR=1
COPY deploy/gpu.lock deploy/
# PyPI's tensorrt-cu13-libs is a stub that downloads the libraries (gigabytes, without any output) from NVIDIA's index:
# no lock has their hash.
ARG WHEEL_STUB_PIP_INDEX_URL=https://pypi.nvidia.com/
RUN pip install --require-hashes --no-deps --no-build-isolation --requirement deploy/gpu.lock \
 && pip install --no-deps "tensorrt-cu13-libs==$(sed --quiet 's/^tensorrt-cu13==\([^ ]*\).*/\1/p' deploy/gpu.lock)" \
 && chown yolopard:yolopard "$YOLOPARD_ENGINES_DIR"
# PCI_BUS_ID: CUDA numbers GPUs as NVML does. The backend is explicit: without a GPU this image exits, instead of
# serving slowly.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_MODULE_LOADING=LAZY \
    CUDA_DEVICE_ORDER=PCI_BUS_ID \
    YOLOPARD_BACKEND=tensorrt
ARG WEIGHTS
ENV YOLOPARD_WEIGHTS=/opt/yolopard/${WEIGHTS}
COPY models/demo/samples models/demo/samples
COPY models/demo/scenes.py models/demo/
COPY ${WEIGHTS} ${WEIGHTS}
COPY app app
USER 10001

FROM server AS cpu
ARG PIP_NO_CACHE_DIR=1
COPY deploy/cpu.lock deploy/
RUN pip install --require-hashes --no-deps --requirement deploy/cpu.lock
ARG WEIGHTS
ENV YOLOPARD_WEIGHTS=/opt/yolopard/${WEIGHTS}
COPY ${WEIGHTS} ${WEIGHTS}
# Without app/building and app/evaluation: this image finds its engine and cannot build one.
COPY app/*.py app/
COPY app/api app/api
COPY app/backends app/backends
COPY app/graphs app/graphs
COPY app/http app/http
COPY app/serving app/serving
COPY app/settings app/settings
COPY app/store app/store
COPY app/system app/system
COPY app/vision app/vision
COPY app/weights app/weights
# Owned by root: the server cannot change the engine that it loads, and the container may run as any user.
COPY --from=build --chown=root:root ${YOLOPARD_ENGINES_DIR} ${YOLOPARD_ENGINES_DIR}
USER 10001
