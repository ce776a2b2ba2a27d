# make help says what there is. Everything lives in .venv (the project's own) and build/; nothing else is touched.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow bench operators lint format sanitize fuzz build clean

# The requirements of pyproject.toml: those of the build, of the package, and of the extras named as arguments.
REQUIREMENTS = $(PY) -c 'import importlib, sys; \
  toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"); \
  p = toml.load(open("pyproject.toml", "rb")); extras = p["project"]["optional-dependencies"]; \
  print(*p["build-system"]["requires"], *p["project"]["dependencies"], *sum((extras[e] for e in sys.argv[1:]), []), sep="\n")'
PIP = $(PY) -m pip --disable-pip-version-check install
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h')

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

demo: build  ## the main job on the bundled model; SHAPE=llama-3.2-1b: speed at a shape; MODEL=path: your checkpoint
	@$(PY) -m torch_cpullm.demo $(if $(SHAPE),--shape '$(SHAPE)') $(if $(MODEL),--model '$(MODEL)')

test: $(VENV)/.dev build  ## the whole test suite, except what is marked slow
	@$(PY) -m pytest

slow: $(VENV)/.dev build  ## the tests marked slow
	@$(PY) -m pytest -m slow

SHAPE_OF_BENCH = $(or $(SHAPE),llama-3.2-1b)
bench: $(VENV)/.dev build  ## generate() against stock and the peers that are installed, into bench/results/ (30 minutes)
	@$(PY) -m torch_cpullm.cli bench --shape '$(SHAPE_OF_BENCH)' --threads 2 --out bench/results \
	  $(if $(SHAPE),,--readme README.md)

operators: $(VENV)/.dev build  ## single operators against torch's; never compare with other load on the machine
	@$(PY) -m pytest bench -m bench

lint: $(VENV)/.dev  ## every check that reads the code without running it
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell

format: $(VENV)/.dev  ## put all files into the format that lint wants
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

# A copy of the package with its own library, in build/sanitize. Python itself is not instrumented: the runtimes of the
# sanitizer and of C++ have to be in the process before it, and what Python never frees is not looked at.
sanitize: export TORCH_CPULLM_SANITIZE = address,undefined
sanitize: export UBSAN_OPTIONS = print_stacktrace=1
sanitize: $(VENV)/.dev  ## the test suite under AddressSanitizer and UndefinedBehaviorSanitizer (g++)
	@$(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	@LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(VENV)/bin/pytest -o pythonpath="build/sanitize/lib ." --capture=sys $(SANITIZED_TESTS)

CASES ?= 100000
fuzz: SANITIZED_TESTS = tests/ops/test_fuzz.py tests/ops/test_fuzz_attention.py -s --fuzz-cases $(CASES)
fuzz: sanitize  ## CASES=100000 random linear layers, and as many attentions, under the sanitizers (about 40 minutes)

# ninja is asked every time; it answers in 0.2 s when nothing changed.
build: $(VENV)/.runtime
	@$(PY) setup.py -q build_ext --inplace

clean:  ## remove what was built; .venv and build/train (the checkpoints of a training run) stay
	rm -rf build/lib* build/temp* build/bdist* build/sanitize torch_cpullm/_*.so torch_cpullm.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .benchmarks .hypothesis

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "PYTHON=$(PYTHON) is not on PATH; install the package python3 (apt, dnf)"; exit 1; }
	@$(PYTHON) setup.py preflight
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The two lists change only when a requirement does, not with every edit of pyproject.toml, so pip is asked rarely.
$(VENV)/runtime.txt: EXTRAS =
$(VENV)/dev.txt: EXTRAS = dev
$(VENV)/runtime.txt $(VENV)/dev.txt: $(VENV)/.created pyproject.toml
	@$(REQUIREMENTS) $(EXTRAS) > $@.new
	@if cmp -s $@ $@.new; then rm $@.new; else mv $@.new $@; fi

# torch first and alone: the reference version on a new machine, and whatever build of it (CPU, CUDA) is there already.
$(VENV)/.runtime: $(VENV)/runtime.txt
	@$(PY) -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null || $(PIP) torch==2.13.0
	@$(PIP) -r $<
	@touch $@

$(VENV)/.dev: $(VENV)/dev.txt $(VENV)/.runtime
	@$(PIP) -r $<
	@touch $@
