# TransferMRI as a BIDS App.
#   docker build --build-arg VARIANT=cpu --tag transfermri:cpu .
#   docker build --build-arg VARIANT=gpu --tag transfermri:gpu .      (CUDA comes with PyTorch's own packages)
# Behind a mirror: --build-arg BASE=… and --build-arg TORCH_INDEX=… name other sources.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS builder
# Debian's archive keeps one version of a package at a time, so a pinned one soon stops building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# The dependencies, before the code, so that a change of the code leaves this layer alone.
COPY requirements.lock ./
ARG VARIANT=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN case "${VARIANT}" in \
        cpu) pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' requirements.lock)" ;; \
        gpu) ;; \
        *) echo "VARIANT=${VARIANT}: expected cpu or gpu" >&2; exit 64 ;; \
    esac \
    && pip install --requirement requirements.lock

COPY pyproject.toml README.md LICENSE NOTICE.md ./
COPY bidsapp bidsapp
ARG VERSION=0.1.0
# What packages carry for their own tests, and libraries to link against, are a tenth of the image.
RUN pip install --no-deps --no-build-isolation . \
    && test "$(transfermri --version)" = "TransferMRI ${VERSION}" \
    && find /opt/venv -depth \( -type d \( -name test -o -name tests \) -o -name '*.a' \) -exec rm -r {} +


FROM ${BASE}
# The wheels bring their own libraries (OpenMP, BLAS, HDF5, ITK); of the system's they need the C++
# runtime only, and Python itself.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libstdc++6 python3 \
    && rm -rf /var/lib/apt/lists/*

ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG IMAGE=ghcr.io/transfermri/transfermri
# The process may run as any user id, without an entry in /etc/passwd (hence USER) and without a
# home (hence HOME), on a root file system that cannot be written to. One thread a process:
# the scheduler of the app runs several processes.
ENV PATH=/opt/venv/bin:$PATH \
    LANG=C.UTF-8 \
    HOME=/tmp \
    USER=transfermri \
    XDG_CACHE_HOME=/tmp/.cache \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLBACKEND=Agg \
    OMP_NUM_THREADS=1 \
    ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRANSFERMRI_CONTAINER=${IMAGE}:${VERSION}-${VARIANT}
ENTRYPOINT ["/opt/venv/bin/transfermri"]

COPY --from=builder /opt/venv /opt/venv
# A library that is missing from this stage stops the build here, not a user's run. What root leaves
# in /tmp other users could not write to.
RUN echo "${VERSION}" > /version \
    && python -c 'import ants, bids, dipy.align, h5py, lightning_fabric, matplotlib.pyplot, nilearn.plotting, nipype, torch, torchio' \
    && find /tmp -mindepth 1 -delete

# What differs from commit to commit comes last, where it makes no layer anew.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="TransferMRI" \
      org.opencontainers.image.description="Pretrained networks brought to the MRI scans of one lab: a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/transfermri/transfermri" \
      org.opencontainers.image.vendor="TransferMRI developers"
