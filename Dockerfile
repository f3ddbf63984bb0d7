# The CPU image: workers of the pools `jit` and `coordinator`, the Prefect server, and
# `tracefleet ...`. `--target s3` builds the S3 server of infra/compose.yaml instead.
#
#   docker build --build-arg TORCH_INDEX=THE_INDEX_OF_PYTORCHS_CPU_WHEELS --tag tracefleet .
#
# `make image-check` builds it without Docker, on a plain Debian, and tries it out.

# Debian bookworm with Python 3.11, venv and pip. For a build that can be repeated to the byte, pass
# the digest too: python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS build-base
# Both are seen in these stages alone, never in the image. Empty: pip's own configuration.
ARG PIP_INDEX_URL=
ARG TORCH_INDEX=
# pip builds our own package in an environment of its own, which takes these pins only from here
# (older versions of pip read the first variable, newer ones the second).
ENV PIP_CONSTRAINT=/app/constraints.txt PIP_BUILD_CONSTRAINT=/app/constraints.txt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The base's pip installs into the environment, so that the image holds no pip.
RUN python3 -m venv --without-pip /opt/venv
WORKDIR /app
# Not our code yet: a change of it then costs no new installation. The environment gets the
# dependencies, the command `tracefleet`, and a pointer to /app.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tracefleet_pipeline/pyproject.toml tracefleet_pipeline/hatch_build.py \
     tracefleet_pipeline/LICENSE tracefleet_pipeline/
RUN mkdir tracefleet && touch tracefleet/__init__.py


FROM build-base AS build
# Alone and first: a CUDA build has to be noticed before it brings its gigabytes along.
RUN python3 -m pip --python /opt/venv/bin/python install --no-deps \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} torch \
 && if [ -n "$(find /opt/venv -name 'libtorch_cuda*')" ]; then \
      echo 'torch: expected the CPU build, got CUDA; pass --build-arg TORCH_INDEX=...' >&2; exit 1; \
    fi
RUN python3 -m pip --python /opt/venv/bin/python install --editable '.[pipeline]' \
      --editable ./tracefleet_pipeline
# What only developers of these packages use, a quarter of a gigabyte. torch looks for its
# torch_shm_manager when it is imported. Compiled modules stay: a flow run starts sooner by seconds.
RUN cd /opt/venv/lib/python3*/site-packages \
 && rm -r torch/include torch/test torch/share \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find sympy networkx mpmath -type d -name tests -prune -exec rm -r {} +
# Which commit this is: shown with each deployment and each run.
ARG TRACEFLEET_COMMIT=
RUN printf '%s' "${TRACEFLEET_COMMIT}" > COMMIT


FROM build-base AS build-s3
RUN python3 -m pip --python /opt/venv/bin/python install --editable '.[s3server]'


FROM ${BASE_IMAGE} AS runtime
# tini is the first process: it hands SIGTERM on and collects what children leave behind.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 10001 --home-dir /var/lib/tracefleet --create-home --shell /usr/sbin/nologin \
      tracefleet \
 && install -d -o 10001 -g 10001 /var/cache/tracefleet /var/lib/tracefleet/s3
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/tracefleet \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1
WORKDIR /app
ENTRYPOINT ["/usr/bin/tini", "--"]


FROM runtime AS s3
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends socat \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build-s3 /opt/venv /opt/venv
COPY infra infra
USER 10001:10001
# Swift's inner ports ask for no signature and stay on loopback; socat lets others reach the one
# that does. The names of the key and its secret are AWS's own.
CMD ["sh", "-c", "socat TCP-LISTEN:9000,fork,reuseaddr TCP:127.0.0.1:8333 & exec python -m \
infra.s3_server --folder /var/lib/tracefleet/s3 --access-key \"$AWS_ACCESS_KEY_ID\" \
--secret \"$AWS_SECRET_ACCESS_KEY\""]


FROM runtime AS worker
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app/COMMIT COMMIT
COPY tracefleet tracefleet
COPY tracefleet_pipeline tracefleet_pipeline
COPY tasks tasks
COPY flows flows
COPY infra infra
COPY examples/fleet.yaml examples/fleet.yaml
# The user can't write here, so that Python couldn't keep what it compiles. But for ./store, the
# store of examples/fleet.yaml: a volume there gets its owner.
RUN python -m compileall -q --invalidation-mode unchecked-hash \
      tracefleet tracefleet_pipeline tasks flows infra \
 && install -d -o 10001 -g 10001 store
# A worker's server for the health check is for this container alone.
ENV TRACEFLEET_CACHE=/var/cache/tracefleet \
    HF_HOME=/var/cache/tracefleet/huggingface \
    PREFECT_HOME=/var/lib/tracefleet/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=180 \
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 \
    PREFECT_CLIENT_MAX_RETRIES=10 \
    PREFECT_LOGGING_EXTRA_LOGGERS=flows,tasks,tracefleet \
    PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1 \
    PREFECT_WORKER_WEBSERVER_PORT=8080
# A number: Kubernetes can only check a number for runAsNonRoot.
USER 10001:10001
# True for a worker started with --with-healthcheck: it answers 503 when it no longer polls.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["python", "-c", \
  "import http.client, os, sys; port = int(os.environ['PREFECT_WORKER_WEBSERVER_PORT']); \
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5); \
connection.request('GET', '/health'); sys.exit(connection.getresponse().status != 200)"]
CMD ["prefect", "worker", "start", "--pool", "jit", "--type", "process", "--with-healthcheck"]
