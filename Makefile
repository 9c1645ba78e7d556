# make demo: from an empty folder to a trained, evaluated, visualised robust classifier
# make test: the whole test suite, with lint, types and the import contract
# make docs: the site, in build/site: its tutorials run, its links are checked

# make release-check: the wheel, installed elsewhere with a Python of your choice, and used there;
#            then with the oldest versions allowed (6 GB of disk while it lasts)
# make test-settings: the suite again and again, under processors and orders that others may have

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-settings docs release-check lint install clean

demo: $(VENV)/.demo
	$(BIN)/python cli.py demo

# Two processes of one thread are faster than one process of two: the networks are small.
WORKERS := -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

# ATEN_CPU_CAPABILITY chooses torch's own kernels, ONEDNN_MAX_CPU_ISA those of its convolutions,
# MKL_ENABLE_INSTRUCTIONS those of its matrix products. What fails is listed under its setting;
# ARGS="tests/core -x" are further words to pytest.
define SETTINGS
|-n 0
OMP_NUM_THREADS=1|$(WORKERS)
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default|$(WORKERS)
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2|$(WORKERS)
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=SSE41|$(WORKERS)
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2|$(WORKERS)
OMP_NUM_THREADS=1|$(WORKERS) -p randomly --randomly-seed=1
OMP_NUM_THREADS=1|$(WORKERS) -p randomly --randomly-seed=2
endef
export SETTINGS

test-settings: $(VENV)/.test
	@echo "$$SETTINGS" | (failed=0; while IFS='|' read -r environment options; do \
	  echo "$$environment pytest $$options"; \
	  said=$$(env $$environment $(BIN)/python -m pytest $$options $(ARGS) 2>&1) || failed=1; \
	  echo "$$said" | grep -E '^(FAILED|ERROR)|(passed|failed|error).* in ' | sed 's/^/  /'; \
	done; exit $$failed)

docs: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python website/build.py

# PYTHONS="python3.11 python3.13" make release-check
PYTHONS ?= $(PYTHON)

release-check: $(VENV)/.release
	for python in $(PYTHONS); do $(BIN)/python .ci/release_check.py --python $$python || exit 1; done
	$(BIN)/python .ci/release_check.py --python $(firstword $(PYTHONS)) --lowest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy funcrobust
	$(BIN)/lint-imports

install: $(VENV)/.demo

# uv takes half a minute where pip takes minutes. What pip alone is configured for, pip then gets.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt uv; \
  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable $(1) \
  || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable $(1)

# Three stamps: the demo does without the test tools. Each is renewed when what it installs changes.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,.)
	touch $@

# torchattacks' wheel brings an old copy of robustbench's files: whichever is installed last is there.
$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,".[test]")
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps --constraint constraints.txt robustbench
	touch $@ $(VENV)/.demo

$(VENV)/.release: pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,".[release]")
	touch $@ $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "funcrobust needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
