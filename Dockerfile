# Images of the node, one target per zone and role:
#
#   orthanc       receives and keeps what a PACS sends            hospital zone
#   worker        watch, console, hospital workers                hospital zone
#   compute-cpu   the models, on processors                       compute zone
#   compute-gpu   the models, on NVIDIA GPUs                      compute zone
#
# docker build --target worker -t segnode-worker .      (deploy/README.md: with buildah, offline bases)
#
# No secret is in any of them: they are files, mounted at the start (compose.yaml).
# A base can be replaced by one of your own; any Debian of that release with apt does.
ARG ORTHANC_BASE=debian:forky-slim
ARG BASE=debian:bookworm-slim

# --- orthanc: the packages that the tests run against (deploy/install.sh) -------------------------
FROM ${ORTHANC_BASE} AS orthanc
RUN set -eu; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        orthanc orthanc-python orthanc-dicomweb ca-certificates; \
    rm -rf /var/lib/apt/lists/*; \
    Orthanc --version | head -n 1 | grep -F ' 1.13.'; \
    install -d -o orthanc -g orthanc -m 700 /var/lib/segnode/storage /var/lib/segnode/index
COPY deploy/run-orthanc deploy/openssl.cnf /opt/segnode/deploy/
COPY plugins/orthanc_bridge /opt/segnode/plugins/orthanc_bridge
# Mounted over it is the folder that deploy/compose_setup.py writes. Without users.json in it, Orthanc
# does not start.
COPY orthanc.json /etc/segnode/orthanc/orthanc.json
# Its HTTP is for the other containers of the private network; publish port 4242 only.
ENV SEGNODE_ORTHANC_STORAGE=/var/lib/segnode/storage \
    SEGNODE_ORTHANC_INDEX=/var/lib/segnode/index \
    SEGNODE_ORTHANC_HTTP_ADDRESS=0.0.0.0 \
    SEGNODE_ORTHANC_HTTP_REMOTE=true
USER orthanc
EXPOSE 4242
# Answering 401 is answering; no password is needed to ask.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${SEGNODE_ORTHANC_HTTP_PORT:-8042} && printf 'GET /system HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 401 '"]
CMD ["/opt/segnode/deploy/run-orthanc", "/etc/segnode/orthanc"]

# --- what all Python targets share -----------------------------------------------------------------
FROM ${BASE} AS python
RUN set -eu; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        python3.11 python3.11-venv ca-certificates; \
    rm -rf /var/lib/apt/lists/*; \
    python3.11 -m venv /opt/venv; \
    useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin segnode; \
    install -d -o segnode -g segnode -m 700 /var/lib/segnode/artifacts /var/lib/segnode/vault
ENV PATH=/opt/venv/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/segnode
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY node ./node
COPY anonymizer ./anonymizer
COPY deploy/with-secrets deploy/healthcheck.py ./deploy/
ENTRYPOINT ["/opt/segnode/deploy/with-secrets"]
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s \
    CMD ["/opt/segnode/deploy/with-secrets", "python", "/opt/segnode/deploy/healthcheck.py"]

# --- worker: the hospital zone; ROLE is watch, console, worker or delivery --------------------------
FROM python AS worker
# Finds text that is burned into pixels, where a site lets a person release such images.
RUN set -eu; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        tesseract-ocr tesseract-ocr-eng; \
    rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --no-compile --constraint requirements.lock '.[hospital,postgres]'
# Manifests and references of the models; their weights are used in the compute zone only.
COPY models ./models
ENV ROLE=worker \
    SEGNODE_VAR_DIR=/var/lib/segnode \
    SEGNODE_MODELS_DIR=/opt/segnode/models \
    SEGNODE_CONFIG=/etc/segnode/segnode.toml
USER segnode
CMD ["sh", "-c", "exec segnode run \"$ROLE\""]

# --- compute: artifact in, artifact out; no Orthanc client, no vault, no ledger ----------------------
FROM python AS compute
# The sandbox of somebody else's programs. In a container it needs user namespaces, which Docker's
# default seccomp profile forbids: docs/foreign-models.md says what to do.
RUN set -eu; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends bubblewrap; \
    rm -rf /var/lib/apt/lists/*
ENV ROLE=compute \
    SEGNODE_COMPUTE_ARTIFACTS_DIR=/var/lib/segnode/artifacts \
    SEGNODE_COMPUTE_MODELS_DIR=/opt/segnode/models \
    OPENBLAS_NUM_THREADS=1
CMD ["sh", "-c", "exec segnode run \"$ROLE\""]

# Made with PyTorch, which stays behind: networks as OpenVINO reads them.
FROM compute AS exports
# An index with PyTorch wheels for processors: 0.2 GB instead of 3 GB with CUDA.
ARG TORCH_INDEX_URL=""
RUN pip install --no-cache-dir --no-compile --constraint requirements.lock \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} '.[compute,torch]'
COPY models ./models
RUN python -m node.packages $(dirname models/*/model.toml) /opt/segnode/exports

FROM compute AS compute-cpu
RUN pip install --no-cache-dir --no-compile --constraint requirements.lock '.[compute,foreign]'
COPY models ./models
COPY --from=exports /opt/segnode/exports ./exports
ENV SEGNODE_COMPUTE_EXPORTS_DIR=/opt/segnode/exports
USER segnode

FROM compute AS compute-gpu
# PyTorch's Linux wheels bring CUDA; the host brings its driver and the NVIDIA container toolkit.
RUN pip install --no-cache-dir --no-compile --constraint requirements.lock '.[compute,torch,foreign]'
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY models ./models
USER segnode
