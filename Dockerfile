# syntax=docker/dockerfile:1
# docker build --target cpu --tag lensjax:cpu .     likewise cuda and tpu
# docker run --rm --user "$(id -u)" --volume "$PWD:/study" lensjax:cpu run study.yaml     with --gpus all for cuda
# --build-arg PYTHON=3.13 makes it for another Python.
ARG PYTHON=3.12

# git, which says the version, is in this image and not in the slim ones.
FROM python:${PYTHON} AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim AS base
COPY --from=wheel /wheels /wheels
RUN useradd lensjax && mkdir /study && chown lensjax /study
# Caches lie in the home, which any --user may write to.
ENV HOME=/tmp
WORKDIR /study
ENTRYPOINT ["lensjax"]
CMD ["--help"]

FROM base AS cuda
RUN set -- /wheels/*.whl && pip install --no-cache-dir "${1}[cuda,gguf]"
USER lensjax

FROM base AS tpu
RUN set -- /wheels/*.whl && pip install --no-cache-dir "${1}[tpu,gguf]"
USER lensjax

# The last one is what `docker build .` makes.
FROM base AS cpu
RUN set -- /wheels/*.whl && pip install --no-cache-dir "${1}[gguf]"
USER lensjax
