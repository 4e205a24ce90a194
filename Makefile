# One command per job; the same by hand and in CI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup chat test check bench lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/*.lock deploy/setup.sh pyproject.toml
	PYTHON=$(PYTHON) bash deploy/setup.sh

$(VENV)/.ready-dev: $(VENV)/.ready requirements/dev.lock
	bash deploy/setup.sh dev

chat: setup
	$(BIN)/graft up

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.serving_ttft
	$(BIN)/python -m benchmarks.serving_ttft --deep
	$(BIN)/python -m benchmarks.serving_fairness
	$(BIN)/python -m benchmarks.serving_routing
	$(BIN)/python -m benchmarks.serving_overhead
	$(BIN)/python -m benchmarks.kv_codec
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.samples
	$(BIN)/python -m benchmarks.retrieval_quality
	$(BIN)/python -m benchmarks.search_latency
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.durability
	$(BIN)/python -m benchmarks.index_versions
	$(BIN)/python -m benchmarks.streamed_lists
	$(BIN)/python -m benchmarks.training_resume
	$(BIN)/python -m benchmarks.training_speed
	$(BIN)/python -m benchmarks.training_joint
	$(BIN)/python -m benchmarks.training_staleness

# Re-resolves the lock files from pyproject.toml; needs `uv`.
lock:
	bash deploy/lock.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
