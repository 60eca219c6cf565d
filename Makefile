# Everything runs in a virtual environment of its own; make help lists what there is.
# To use a torch that the system has (a CUDA build, say):
#   make report VENV_FLAGS=--system-site-packages CONSTRAINTS=/dev/null

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
CONSTRAINTS ?= constraints.txt
OUT ?= reports
WORKERS ?= 2
QUICK ?=
BIN := $(VENV)/bin
# Python compiles a module at its first import; to compile all of torch takes longer than to copy it.
# What was compiled is kept, whatever is set elsewhere: else each process compiles all anew.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# Weights of the models whose attention the studies replace.
WEIGHTS := minilm vit photographs smollm2 whisper

.PHONY: help gpu install report board report-models report-images test suite test-all docs fidelity peers lint check
.PHONY: docket format bench mutants dist matrix coverage transforms clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## softlab with its report and laws, into .venv; about 2 minutes

report: $(INSTALLED)  ## every study, on real activations, and the PDF of them all; some 40 minutes on two cores, and it says first how long; QUICK=1: minutes
	$(BIN)/softlab run --all --threads 1 --workers $(WORKERS) --out $(OUT) $(if $(QUICK),--quick)
	$(BIN)/softlab report $(OUT)
	$(MAKE) board

board: $(INSTALLED)  ## every approximation of the catalogue on recorded heads, as one page; some minutes
	$(BIN)/softlab compare --all --results $(OUT)/board $(if $(QUICK),--quick)
	$(BIN)/softlab board $(OUT)/board --out $(OUT)/board.html

report-models: $(INSTALLED)  ## the studies inside trained models too; fetches 350 MB of weights once
	$(PIP) -c $(CONSTRAINTS) -e '.[models]'
	$(BIN)/softlab fetch $(WEIGHTS)
	$(BIN)/softlab run --all --needs models --out $(OUT)
	$(BIN)/softlab report $(OUT)

report-images: $(INSTALLED)  ## SOFT's pyramid trained on real images; fetches 31 MB once, by apt
	[ -n "$(SOFTLAB_FASHION_MNIST)" ] || $(BIN)/softlab fetch fashion-mnist
	$(BIN)/softlab run --all --needs images --threads 1 --workers $(WORKERS) --out $(OUT)
	$(BIN)/softlab report $(OUT)

test-all: $(READY)  ## every case of the tests of which make test asks a sample
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --all

# Much of the site keeps one core busy. Beside it goes lint, and where that holds, the suite: each
# worker takes half of the tests in their order, so that a fixture is made once, and what is left of
# the other's half. The tests of the site come late enough to find it built.
test: $(READY)  ## the gate: lint, the site, and the whole suite, which opens it; 12 to 16 minutes
	$(MAKE) --jobs 2 suite docs

suite: lint  ## lint, then the suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

docs: $(READY)  ## the site, docs/_build/html/index.html; warnings as errors, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -j $(WORKERS) docs docs/_build/html

fidelity: $(READY)  ## our operators beside published packages, on the same weights
	$(PIP) -c $(CONSTRAINTS) -e '.[fidelity]'
	$(BIN)/python -m pytest tests/fidelity -rs

peers: $(READY)  ## published packages under the laws, a section of the report
	$(PIP) -c $(CONSTRAINTS) -e '.[fidelity]'
	$(BIN)/softlab run --all --needs fidelity --threads 1 --out $(OUT)
	$(BIN)/softlab report $(OUT)

docket: $(INSTALLED)  ## published claims, tried, and the report with their verdicts; less than an hour on two cores
	$(BIN)/softlab docket run --threads 1 --workers $(WORKERS) --out $(OUT) $(ARGS) || [ $$? = 1 ]  # 1: it found something
	$(BIN)/softlab report $(OUT)

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## format, lint, types, import layers; the hooks of .pre-commit-config.yaml
	$(BIN)/python -m pytest tests/test_layers.py

dist: $(READY)  ## wheel and sdist, built twice, and the wheel tried in an environment of its own
	$(PIP) -c $(CONSTRAINTS) -e '.[dist]'
	$(BIN)/python tools/dist.py --constraints $(abspath $(CONSTRAINTS))

matrix: $(READY)  ## the supported versions, each installed and tried; writes docs/supported.md
	$(BIN)/python tools/matrix.py $(NAMES)

coverage: $(READY)  ## record and substitute on published architectures; writes docs/guide/coverage.md
	$(PIP) -c $(CONSTRAINTS) -e '.[coverage]'
	OMP_NUM_THREADS=1 $(BIN)/python tools/architectures.py

transforms: $(READY)  ## every operator under torch's transforms; writes docs/guide/transforms.md
	OMP_NUM_THREADS=1 $(BIN)/python tools/transforms.py

format: $(READY)  ## format, and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## speed and memory beside straightforward implementations
	$(BIN)/python benchmarks/attention.py --out $(OUT)/benchmarks
	$(BIN)/python benchmarks/inverse.py --out $(OUT)/benchmarks
	$(BIN)/python benchmarks/engine.py --out $(OUT)/benchmarks
	$(BIN)/python benchmarks/capture.py --out $(OUT)/benchmarks
	$(BIN)/python benchmarks/pyramid.py --out $(OUT)/benchmarks

GPU_FLAGS ?=

gpu: $(READY)  ## all that a GPU is asked for, in 8 minutes; GPU_FLAGS='--device cpu --seconds 60' tries it here
	$(BIN)/python benchmarks/gpu.py --out $(OUT) $(GPU_FLAGS)

MUTANT_SECONDS ?= 1800

mutants: $(READY)  ## do the tests notice changed lines? half an hour unless MUTANT_SECONDS says else
	$(BIN)/python benchmarks/mutants.py --seconds $(MUTANT_SECONDS) --workers $(WORKERS) --out $(OUT)

clean:  ## what was installed and measured here; other files stay
	rm -rf $(VENV) $(dir $(wildcard $(OUT)/*/meta.json)) $(addprefix $(OUT)/,benchmarks report.pdf report.html)

# A new pip first: that of Python 3.11 takes twice as long to choose versions. Then torch, alone and
# pinned: left to the resolver it would be the newest CUDA build.
$(VENV)/.torch: pyproject.toml $(filter-out /dev/null,$(CONSTRAINTS))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "softlab needs Python 3.11 or newer; use make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(PIP) -c $(CONSTRAINTS) --upgrade pip
	$(PIP) -c $(CONSTRAINTS) 'torch>=2.8'
	touch $@

$(INSTALLED): $(VENV)/.torch
	$(PIP) -c $(CONSTRAINTS) -e '.[report,laws]'
	touch $@

# What development needs besides: tests, lint, the site.
$(READY): $(VENV)/.torch
	$(PIP) -c $(CONSTRAINTS) -e '.[report,laws,dev,docs]'
	touch $(INSTALLED) $@
