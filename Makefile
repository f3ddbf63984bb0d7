# Two commands on a fresh machine: `make demo` and `make test`. Both set themselves up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Prefect's embedded server needs more than its default 20 s on small machines, and tells nobody.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 180
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1

# Tests run beside each other: a torch with a thread for each core would wait for its own threads,
# and those of larger models must not spin while they wait.
QUIETLY := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: demo test coverage test-quick soak sweep lint serve-s3 image-check bench bench-store bench-serve bench-generate bench-fleet night format clean help

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml tracefleet_pipeline/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev]' --editable ./tracefleet_pipeline
	touch $(STAMP)

demo: $(STAMP)  ## convert the real all-MiniLM-L6-v2 into ./store and use it
	$(BIN)/python -m examples.demo

test: $(STAMP)  ## every test
	$(QUIETLY) $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

coverage: $(STAMP)  ## every test, and which lines they run; at least 95 % (a third longer)
	$(BIN)/python -m coverage erase
	$(QUIETLY) $(BIN)/python -m coverage run -m pytest -n 3 --dist loadfile --no-loadscope-reorder
	@# Children that were killed on purpose leave torn data files behind: passed over, then removed.
	$(BIN)/python -W ignore -m coverage combine --quiet
	@rm -f .coverage.*
	$(BIN)/python -m coverage report

test-quick: $(STAMP)  ## a verdict in two minutes: no servers, no sweeps, no coverage
	$(QUIETLY) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

soak: $(STAMP)  ## crash and race tests at full size: 200 random deaths a store, all steps
	TRACEFLEET_SOAK=200 $(BIN)/python -m pytest -s tests/test_crash.py tests/test_race.py tests/test_s3_liar.py

sweep: $(STAMP)  ## every architecture of transformers through the whole conversion (about 25 min)
	$(BIN)/tracefleet sweep --tiny --out sweep.json --table docs/architectures.md

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

serve-s3: $(STAMP)  ## an S3 server on this machine, objects in ./s3-data
	$(BIN)/python -m infra.s3_server

image-check: $(STAMP)  ## build the image without Docker and try it out (root, Debian, 10 min)
	$(BIN)/python -m infra.image_check

cpp: $(STAMP)  ## build the C++ examples and run them on ./store (needs cmake, g++, OpenSSL)
	$(BIN)/python -m examples.cpp.build

bench: $(STAMP)  ## whole conversion against the documented script, as ratios
	$(BIN)/python -m benchmarks.conversion

bench-store: $(STAMP)  ## a store on S3 against plain boto3, as ratios; needs 6 GB of disk
	$(BIN)/python -m benchmarks.store

bench-serve: $(STAMP)  ## sentences a second of the artifact against transformers, as ratios
	$(BIN)/python -m benchmarks.serve

bench-generate: $(STAMP)  ## tokens a second of the artifact's generate against transformers, as ratios
	$(BIN)/python -m benchmarks.generate

bench-fleet: $(STAMP)  ## 1,000 tiny checkpoints over a real Prefect server and two workers
	$(BIN)/python -m benchmarks.fleet

night: $(STAMP)  ## a fleet's night on a real server, and what its morning's page says
	$(BIN)/python -m benchmarks.night

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) store .bench
