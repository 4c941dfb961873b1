# For webserver, daemon, code server, watcher and migration, for pods of runs, and for steps on CPUs.
#
#     docker build --file deploy/images/light.Dockerfile --tag mirror-realm/light:0.1.0 .
#
# The base is pinned to a patch release. A tag can be given to another image, so whoever builds for production adds the
# digest that `docker buildx imagetools inspect` tells, in both lines: FROM python:3.11.14-slim-bookworm@sha256:DIGEST.
FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PATH=/opt/mirror-realm/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY constraints.txt pyproject.toml ./
RUN python -m venv /opt/mirror-realm/venv \
 && python -m pip install --upgrade -c constraints.txt pip setuptools wheel cython

# Nothing is told: the default index has torch with CUDA, which runs on CPUs as well, but brings 4 GB that they never use.
# Told the index of builds for CPUs (pytorch.org, "Get Started", "CPU"), torch and torchvision come from there, the same
# releases, and nothing else does.
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then \
      python -m pip install --no-deps --index-url "$TORCH_INDEX" -c constraints.txt torch torchvision; \
    fi

# The packages come before the code, so that a change of the code downloads none of them again.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
 && python -m pip install --no-build-isolation -c constraints.txt -r requirements.txt
# As the Makefile does, and for its reason.
RUN python -m pip install --no-deps --no-build-isolation \
      basicsr==1.4.2 facexlib==0.3.0 gfpgan==1.3.8 realesrgan==0.3.0
COPY LICENSE README.md ./
COPY mirror_realm_assets mirror_realm_assets
RUN python -m pip install --no-deps --no-build-isolation -c constraints.txt .

# A pod's files cannot be changed, so that weights have to be in the image: those that are needed, and what is named here.
ARG MODELS=""
ENV MIRROR_REALM_MODELS_DIR=/opt/mirror-realm/models
RUN mirror-realm models fetch \
 && printf '%s' "$MODELS" | xargs --no-run-if-empty mirror-realm models fetch \
 && mirror-realm models verify


# The wheels bring their own libraries: of the system they want those of C and C++ alone, so nothing is installed here.
FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="Mirror Realm, light" \
      org.opencontainers.image.description="Webserver, daemon, code server, watcher, migration, and steps on CPUs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.11.14-slim-bookworm"
# The user of every pod in deploy/base.
RUN groupadd --gid 10001 mirror-realm \
 && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/mirror-realm \
      --shell /usr/sbin/nologin mirror-realm \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/mirror-realm
# Owned by root, so that the programs cannot change themselves.
COPY --from=build /opt/mirror-realm /opt/mirror-realm
COPY deploy/images/healthy.py /opt/mirror-realm/healthy.py
ENV PATH=/opt/mirror-realm/venv/bin:$PATH \
    MIRROR_REALM_HOME=/var/lib/mirror-realm \
    MIRROR_REALM_MODELS_DIR=/opt/mirror-realm/models \
    # A log is read while it is written.
    PYTHONUNBUFFERED=1 \
    # pip has compiled all modules, and nothing may be written beside them.
    PYTHONDONTWRITEBYTECODE=1 \
    # MIRROR_REALM_THREADS is 2: more threads than that only spin.
    OMP_NUM_THREADS=2 \
    # These three: see START_ENVIRONMENT in mirror_realm_assets/weights/hardware.py.
    GOMP_SPINCOUNT=3000 \
    MALLOC_ARENA_MAX=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1
WORKDIR /var/lib/mirror-realm
USER 10001:10001
EXPOSE 3000 4000
# For Docker: a cluster asks the probes in deploy/base and does not look at this.
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 \
    CMD ["python", "/opt/mirror-realm/healthy.py"]
CMD ["mirror-realm", "doctor"]
