# Two commands do everything: `make quickstart` and `make test`. Both make the environment in .venv first.
# All paths are relative, so that a folder with a space in its name is no trouble.

PYTHON ?= python3
PIP_ARGS ?=
# On Linux PyPI's torch brings CUDA (several GB); for the CPU build:
#   make quickstart PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PY := .venv/bin/python
TORCH := torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-slow soak lint format docs clean

quickstart: .venv/run.stamp
	.venv/bin/distill --recipe recipes/quickstart.toml
	@run=$$(ls -d runs/*-quickstart | tail -1); printf '%s\n' "" "Next, from here:" \
	  "  .venv/bin/distill generate --network $$run --seeds 0-63 --format grid --outdir images" \
	  "  .venv/bin/distill --recipe quickstart --loss sid" \
	  "  .venv/bin/distill report runs/*-quickstart --output both.html"

# Two workers on two cores, one thread each.
test: .venv/test.stamp lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/test.stamp
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

# An hour of kills, signals, full disks and flipped bits, and the counts of what became of them.
soak: .venv/test.stamp
	OMP_NUM_THREADS=1 $(PY) -m tests.soak --minutes 60

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The pages that are made from the settings' classes and from the command, and then the site of all pages: site/index.html.
docs: .venv/test.stamp
	$(PY) docs/reference.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo "the site is site/index.html"

format: .venv/test.stamp
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build site

# The environment. torch is named first and alone, so that no other package chooses its build.
.venv/base.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "distill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Point make at another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@echo "making an environment in .venv: first torch (about 200 MB for the CPU), then the other packages; this takes some minutes"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints.txt "$(TORCH)" hatchling editables
	@touch $@

.venv/run.stamp: .venv/base.stamp pyproject.toml
	$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation -e ".[digits,plots]"
	@touch $@

.venv/test.stamp: .venv/run.stamp
	$(PY) -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation -e ".[test]"
	@touch $@
