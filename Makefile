# setup, demo, test and check are the whole workflow; each makes what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test matrix test-all wheel check bench bench-tiny clean

setup: $(STAMP)

# torchrec's own requirements name the CUDA build of fbgemm, which overwrites fbgemm-gpu-cpu, so
# torchrec comes last and without them; its real needs are in pyproject.toml. Of kserve tests read the
# types of its manifests alone, and it allows no protobuf as new as ours.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard embedcomp/*/*.cpp embedcomp/*/*.h embedcomp/*/*.inc) proto/embedcomp/v1/scoring.proto
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedcomp needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps torchrec==1.8.0 kserve==0.21.0
	$(BIN)/python proto/build.py
	$(BIN)/python -c 'from embedcomp.kernels import native; native.library()'  # says where it is not
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m embedcomp.pipelines.demo --rows 300000 --out demo_out

# Ray takes all cores itself, and gives up on workers that start slowly.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m "not matrix and not slow and not ray"
	$(BIN)/python -m pytest tests/pipelines -m "ray and not slow"

# What takes longer than tests of `make test`, or differs from them in sizes or combinations of parts.
matrix: $(STAMP)
	$(BIN)/python -m pytest -n auto -m "matrix and not ray"
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m "slow and not matrix and not ray"
	$(BIN)/python -m pytest tests/pipelines -m "ray and (matrix or slow)"

# All tests, and what scores once more under AddressSanitizer and UBSan.
test-all: test matrix
	$(BIN)/python -m tests.sanitized

# Build the wheel and use it in empty environments.
wheel: $(STAMP)
	$(BIN)/python -m tests.wheel

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The runs behind docs/results.md, hours on two cores (benchmarks/README.md has the list); the same
# command goes on where it was stopped. DATA is the folder of click logs.
DATA ?= ../shared/data
bench: $(STAMP)
	$(BIN)/python -m benchmarks.runs --data $(DATA)

bench-tiny: $(STAMP)
	$(BIN)/python -m benchmarks.runs --tiny

clean:
	rm -rf $(VENV) demo_out build/lib *.egg-info
