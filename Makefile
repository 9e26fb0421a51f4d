# setup, demo, test and check are the whole workflow; each makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test test-all check bench clean

setup: $(STAMP)

# torchrec's own requirements name the CUDA build of fbgemm, which overwrites fbgemm-gpu-cpu, so
# torchrec comes last and without them; its real needs are in pyproject.toml.
$(STAMP): pyproject.toml setup.py $(wildcard embedcomp/*/*.cpp embedcomp/*/*.h embedcomp/*/*.inc) proto/embedcomp/v1/scoring.proto
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedcomp needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps torchrec==1.8.0
	$(BIN)/python proto/build.py
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m pipelines.demo --rows 300000 --out demo_out

test: $(STAMP)
	$(BIN)/python -m pytest

# What `make test` runs, and what scores once more under AddressSanitizer and UBSan.
test-all: test
	$(BIN)/python -m tests.sanitized

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The runs behind docs/results.md: hours on two cores, each resumable; DATA is the folder of click logs.
DATA ?= ../shared/data
bench: $(STAMP)
	$(BIN)/python -m benchmarks.quality --log movielens_1m --data $(DATA)
	$(BIN)/python -m benchmarks.quality --log kuairand --data $(DATA)
	$(BIN)/python -m benchmarks.comparison --log movielens_1m --tune-batch 1024 --data $(DATA)
	$(BIN)/python -m benchmarks.comparison --log kuairand --data $(DATA)
	$(BIN)/python -m benchmarks.prediction --log movielens_1m --data $(DATA)
	$(BIN)/python -m benchmarks.prediction --log kuairand --data $(DATA)
	$(BIN)/python -m benchmarks.globo --epochs 10 --control --data $(DATA)
	$(BIN)/python -m benchmarks.training_speed --data $(DATA)
	$(BIN)/python -m benchmarks.low_rank_speed
	$(BIN)/python -m benchmarks.solvers
	$(BIN)/python -m benchmarks.trellis
	$(BIN)/python -m benchmarks.scoring --data $(DATA)

clean:
	rm -rf $(VENV) demo_out build/lib *.egg-info
