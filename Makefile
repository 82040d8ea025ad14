# The same lines for people and for CI. `make demo` and `make test` need Python, git and make only.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTS ?= tests
unexport PYTHONDONTWRITEBYTECODE # a rank that compiles torch anew takes seconds more to start

.PHONY: demo test test-deps cluster-deps cluster cluster-down matrix-kubernetes matrix-runtime matrix-inference matrix-helm ray-cluster matrix-ray check format bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "parctl needs Python 3.11 or newer; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Launch a tiny Llama on this machine: four CPU ranks with tensor, sequence and fully-sharded data parallelism.
demo: $(INSTALLED)
	$(BIN)/parctl plan tiny-llama
	$(BIN)/parctl launch tiny-llama --follow

# System programs that some tests open; those tests skip, naming this target, where they are absent.
test-deps:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core

# The programs of a real Kubernetes cluster, for the tests that skip without it: system packages by
# apt, the others built from Go modules into a cache outside the tree. The first time takes minutes.
cluster-deps: $(INSTALLED)
	$(BIN)/python -m tests.cluster.programs

# A cluster to try things on; `make cluster-down` removes it and whatever killed test runs left.
cluster: $(INSTALLED)
	$(BIN)/python -m tests.cluster up

cluster-down: $(INSTALLED)
	$(BIN)/python -m tests.cluster down

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS)

# Every product of parallel forms beside one process; `make test` runs a sample of it.
matrix-runtime: $(INSTALLED)
	$(BIN)/python -m tests.runtime.matrix

# A Ray cluster on this machine: four nodes with eight fake GPUs each. Prints how to reach it; ^C ends it.
ray-cluster: $(INSTALLED)
	$(BIN)/python -m tests.launcher.ray.cluster

# Twenty launches in a row, on fragmented nodes and beside another job, and every fault; `make test` runs a part of it.
matrix-ray: $(INSTALLED)
	PARCTL_MATRIX=1 $(BIN)/python -m pytest tests/launcher/ray

# Greedy output of every parallel form beside `transformers`; `make test` runs a sample of it.
matrix-inference: $(INSTALLED)
	$(BIN)/python -m tests.runtime.inference.matrix
	$(BIN)/python -m tests.runtime.inference.block_operations

# Twenty launches into a cluster in disorder, every model in every shape beside a local run, every fault.
matrix-kubernetes: $(INSTALLED)
	$(BIN)/python -m tests.launcher.kubernetes.matrix

# Every right of the chart's roles taken away in turn; `make test` runs a part of it.
matrix-helm: $(INSTALLED)
	PARCTL_MATRIX=1 $(BIN)/python -m pytest tests/helm/access

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p parctl
	$(BIN)/mypy tests benchmarks

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers train with the torch that parctl trains with: one installation, seen by both.
.venv-peers/.installed: benchmarks/peers.txt $(INSTALLED)
	$(PYTHON) -m venv .venv-peers
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/torch-of-parctl.pth
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	touch $@

# Every figure is a ratio against a named peer in the same run; the machine's own speed does not matter.
bench: $(INSTALLED) .venv-peers/.installed
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/launch_cost.py
	$(BIN)/python -m benchmarks.train_cpu

clean:
	rm -rf .venv .venv-peers build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
