# syntax=docker/dockerfile:1
# docker build -t soupbench .                             runs on the CPU
# docker build -t soupbench --build-arg TORCH=cu128 .     runs on NVIDIA GPUs too: docker run --gpus all soupbench doctor
# Caches and results stay in the volume: docker run -v "$PWD/soupbench:/results" soupbench run --demo
FROM python:3.13-slim-bookworm AS build
# .git gives the version; without it the version is unknown.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN git config --global --add safe.directory /source \
    && pip install --no-cache-dir 'build>=1.2' \
    && python -m build --wheel --outdir /wheels /source

FROM python:3.13-slim-bookworm
# cpu, or a CUDA version as in https://download.pytorch.org/whl/: those wheels bring the CUDA libraries with them.
ARG TORCH=cpu
ARG EXTRAS=fast,frost,models
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "soupbench[${EXTRAS}] @ file://$(ls /wheels/*.whl)"
RUN useradd --create-home --uid 1000 bench && mkdir /results && chown bench /results
USER 1000
WORKDIR /results
ENV SOUPBENCH_CACHE=/results/cache \
    HF_HOME=/results/cache/huggingface
VOLUME /results
ENTRYPOINT ["bench"]
CMD ["--help"]
