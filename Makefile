# Everything runs from a fresh clone with Python 3.11+ and pip. The second run of a target starts at once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST ?= .venv-lowest
# Tests of one file stay in one process; override with PARALLEL= to run all in one.
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder
# Tests start many processes. Each would compile the project again, and each pytest rewrite all its assertions, where
# the environment forbids to keep bytecode.
test test-lowest test-all test-slow test-slurm perf: export PYTHONDONTWRITEBYTECODE =

.PHONY: demo check test test-lowest test-all test-slurm perf docs clean components figures

demo: $(VENV)/.installed
	$(BIN)/bench run --demo

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

# The suite's fast part on the lowest versions that pyproject.toml allows; PYTHON=python3.11 for the lowest Python too.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu"

# What `make test` leaves out, of all folders or of PART; `make perf` measures speed.
.PHONY: test-slow
PART ?= tests/e2e tests/official tests/corruptions tests/methods tests/bench tests/leaderboards
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not gpu" $(PART)

test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/e2e/test_slurm.py -m slow -rs

perf: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/perf -m "slow or not slow" --benchmark-only

# The documentation site with the boards below it, in build/site; needs no torch.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/site/pages.py build/docs
	$(BIN)/zensical build --strict
	$(BIN)/bench leaderboard --out build/site/boards

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev,docs]'
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps 'corrupt-tta>=0.1.7' 'imagecorruptions-imaug>=1.1.5'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.made pyproject.toml leaderboards/requirements.txt
	$(BIN)/python docs/site/requirements.py pyproject.toml > $(VENV)/docs.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r leaderboards/requirements.txt -r $(VENV)/docs.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

$(LOWEST)/.installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q -c $(LOWEST)/constraints.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q --no-deps 'corrupt-tta>=0.1.7' 'imagecorruptions-imaug>=1.1.5'
	touch $@

# After a change of code: the digests and the numbers that the versions of components stand for.
components: $(VENV)/.installed-dev
	$(BIN)/python tests/component_numbers.py

# The figure of README.md, for light and dark pages, from the published results.
figures: $(VENV)/.installed
	$(BIN)/python docs/figures/draw.py

clean:
	rm -rf $(VENV) $(LOWEST) build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks dist
