# make run    run every experiment's preset; results go to results/, see results/index.html
# make claims run what README and docs/results.md state on fresh seeds, an hour: `make claims FIRST_SEED=1000`, results/claims
# make test   lint, types and all tests (`.venv/bin/pytest -m "not slow"` takes a minute or so)
# make test-machines   all tests as on other processors: instruction sets and threads (.ci/machines says which), half an hour
# make test-ptx   the kernels built for three generations of CUDA devices, without one; installs compilers of 450 MB
# make docs   the pages of docs/, to build/docs/index.html
# make clean  remove the environment and every cache; results/ stays
#
# They set up the environment at their first call. Options, as in `make run PYTHON=python3.12`:
#   PYTHON       the interpreter, 3.10 or newer
#   CUDA=1       torch's default build with CUDA (several gigabytes) instead of the CPU build, in .venv-cuda
#   FIRST_SEED   of make claims: take seeds that nobody has used
#   TORCH_INDEX  another index for torch, such as https://download.pytorch.org/whl/cu130 (make clean first)

PYTHON      ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CUDA        ?=
FIRST_SEED  ?= 300
VENV        := $(if $(CUDA),.venv-cuda,.venv)
export PYTHON TORCH_INDEX CUDA

.PHONY: run claims test kernels lint types test-machines test-ptx docs clean

run: $(VENV)/ready-experiments
	$(VENV)/bin/python -m geometry.compiled
	$(VENV)/bin/python run_all.py

claims: $(VENV)/ready-experiments
	$(VENV)/bin/python -m geometry.compiled
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m experiments.claims default --first-seed $(FIRST_SEED)

test: $(VENV)/ready-dev
	$(MAKE) --no-print-directory -j 3 lint types kernels
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Side by side: mypy is one process, and the longest kernel is compiled by another.
kernels: $(VENV)/ready-dev
	$(VENV)/bin/python -m geometry.compiled

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@command -v npm >/dev/null || echo "npm is not installed: the JavaScript of experiments/viewers/web is not checked"

types: $(VENV)/ready-dev
	$(VENV)/bin/mypy

test-machines: $(VENV)/ready-dev
	sh .ci/machines $(VENV)/bin/python $(PROFILES)

test-ptx: $(VENV)/ready-dev $(VENV)/ready-ptx
	$(VENV)/bin/pytest -s tests/geometry/test_ptx.py

docs: $(VENV)/ready-docs
	rm -rf docs/api
	$(VENV)/bin/sphinx-build -W -q -b html docs build/docs

# A stamp a set of extras: made anew when what it was made from changes.
$(VENV)/ready-%: pyproject.toml constraints.txt .ci/setup
	@sh .ci/setup $(VENV) $*
	@touch $@

clean:
	rm -rf .venv .venv-cuda *.egg-info build docs/_generated docs/api .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf experiments/viewers/web/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
