# Everything runs in .venv of this clone. PYTHON is the Python (3.11 or newer) that makes it.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
SEED ?= 0

# The options of `make search`: they end within 20 minutes on two cores without a GPU, and denoise better than the
# defaults (docs/log.md), which are those of the slides (width 64, whole training set, constant rates).
FIRST := --trials 16 --epochs 9 --images-per-epoch 4000 --final-epochs 44 --time-budget-minutes 8 \
	--set width=16 --set blocks=1 --set depth=3 --set batch_size=32 --set dropout=0 --set output=residual \
	--set lr_schedule=cosine --set beta1=0.9 --set adversarial_weight=0.001

.PHONY: setup data search test test-all test-cluster clean

setup: .venv/installed data

# torch comes first and with its exact version: a range would install several GB of CUDA libraries without a GPU.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Fashion-MNIST comes from Debian's package if apt-get is available, else from its authors. Its checksum is verified.
data: .venv/installed
	@test -d /usr/share/datasets/fashion-mnist || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| (apt-get update -qq; apt-get install -y -qq dataset-fashion-mnist) >/dev/null || true
	@$(BIN)/python -m model.data.fashion_mnist

search: setup
	$(BIN)/hpo search first --runs $(RUNS) --seed $(SEED) $(FIRST)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not cluster" -n 2 --dist loadfile

test-all: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not cluster" --hypothesis-profile deep
	$(MAKE) test-cluster

# Several hosts and a stand-in for EC2 on this machine (tests/support/hosts.py). It needs root.
test-cluster: setup
	@test "$$(id -u)" != 0 || (command -v sshd && command -v rsync && command -v ip) >/dev/null \
		|| (apt-get update -qq; apt-get install -y -qq openssh-server rsync iproute2) >/dev/null
	$(BIN)/pip install -q -c constraints.txt -e '.[test-cluster]'
	$(BIN)/pytest -m cluster tests/cluster

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
