# A worker of the pool `neuronx`: compiles for Inf2 and Trn, and validates on them.
#
#   docker build --file infra/neuron/neuronx.Dockerfile --tag tracefleet-neuronx \
#     --build-arg NEURON_PIP_INDEX=AWS_NEURONS_PYTHON_INDEX \
#     --build-arg NEURON_APT_REPOSITORY=AWS_NEURONS_PACKAGE_REPOSITORY \
#     --build-arg NEURON_APT_KEY=ADDRESS_OF_ITS_KEY .
#
# The addresses stand in AWS's setup guide. Not built where this is developed: see README.md beside.

# Debian bookworm with Python 3.11, venv and pip.
ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS build
# All are seen in this stage alone. Empty PIP_INDEX_URL: pip's own configuration.
ARG PIP_INDEX_URL=
ARG TORCH_INDEX=
ARG NEURON_PIP_INDEX=
ARG NEURON_APT_REPOSITORY=
ARG NEURON_APT_SUITE=jammy
ARG NEURON_APT_KEY=
# The public index has placeholders under the names of AWS's packages: no address, no build.
RUN if [ -z "${NEURON_PIP_INDEX}" ]; then \
      echo 'NEURON_PIP_INDEX: expected the address of the Python index of AWS Neuron, got none;' \
        'pass --build-arg NEURON_PIP_INDEX=...' >&2; exit 1; \
    fi
RUN if [ -z "${NEURON_APT_REPOSITORY}" ] || [ -z "${NEURON_APT_KEY}" ]; then \
      echo 'NEURON_APT_REPOSITORY, NEURON_APT_KEY: expected the addresses of the package' \
        'repository of AWS Neuron and of its key, got none; pass both by --build-arg' >&2; exit 1; \
    fi \
 && python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' \
      "${NEURON_APT_KEY}" /tmp/neuron.asc \
 && echo "deb [signed-by=/etc/apt/neuron.asc] ${NEURON_APT_REPOSITORY} ${NEURON_APT_SUITE} main" \
      > /tmp/neuron.list
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv --without-pip /opt/venv
COPY infra/neuron/check_pins.py /tmp/check_pins.py
COPY infra/neuron/constraints-neuronx.txt /tmp/constraints.txt
# Alone and first, where an index of CPU builds is named: the usual build brings CUDA's gigabytes.
RUN if [ -n "${TORCH_INDEX}" ]; then \
      python3 -m pip --python /opt/venv/bin/python install --no-deps \
        --extra-index-url "${TORCH_INDEX}" "$(grep '^torch==' /tmp/constraints.txt)"; \
    fi
# Every pin is also a request: the file is the whole list of what a worker needs itself. What those
# ask for is not pinned: AWS's packages limit some of it, in ways that can't be seen here.
RUN python3 -m pip --python /opt/venv/bin/python install \
      --extra-index-url "${NEURON_PIP_INDEX}" --requirement /tmp/constraints.txt
# Proves that the packages are AWS's: the placeholders are version 1.0, and have no such command.
RUN /opt/venv/bin/python /tmp/check_pins.py /tmp/constraints.txt \
 && PATH=/opt/venv/bin:$PATH neuronx-cc --version


FROM ${BASE_IMAGE} AS worker
ARG NEURON_RUNTIME=2.34.10.0
ARG NEURON_TOOLS=2.32.28.0
# tini is the first process: it hands SIGTERM on and collects what children leave behind. The
# runtime is SDK 2.32's, a release newer than the compiler: it loads what older compilers made. The
# driver is the host's.
COPY --from=build /tmp/neuron.asc /tmp/neuron.list /etc/apt/
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates tini \
 && mv /etc/apt/neuron.list /etc/apt/sources.list.d/ \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      "aws-neuronx-runtime-lib=${NEURON_RUNTIME}*" "aws-neuronx-collectives=${NEURON_RUNTIME}*" \
      "aws-neuronx-tools=${NEURON_TOOLS}*" \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 10001 --home-dir /var/lib/tracefleet --create-home --shell /usr/sbin/nologin \
      tracefleet \
 && install -d -o 10001 -g 10001 /var/cache/tracefleet
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY tracefleet tracefleet
COPY tasks tasks
COPY flows flows
COPY infra infra
ENV PATH=/opt/venv/bin:/opt/aws/neuron/bin:/usr/local/bin:/usr/bin:/bin \
    LD_LIBRARY_PATH=/opt/aws/neuron/lib \
    HOME=/var/lib/tracefleet \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    TRACEFLEET_CACHE=/var/cache/tracefleet \
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
RUN python -m compileall -q --invalidation-mode unchecked-hash tracefleet tasks flows infra \
 && install -d -o 10001 -g 10001 store
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["python", "-c", \
  "import http.client, os, sys; port = int(os.environ['PREFECT_WORKER_WEBSERVER_PORT']); \
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=5); \
connection.request('GET', '/health'); sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
# One run at a time: a process takes all NeuronCores, and a compiler most of the memory.
CMD ["prefect", "worker", "start", "--pool", "neuronx", "--type", "process", "--limit", "1", \
  "--with-healthcheck"]
