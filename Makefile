# Two commands set everything up on a fresh machine: `make demo` and `make test`.
#
#   VENV=.venv                the virtual environment to make and use
#   PYTHON=path/to/python     use this interpreter's environment as it is instead; its torch is kept
#   TORCH=torch==2.13.0       what to ask pip for where there is no torch yet
#   ARGS=--small              what to pass on to the scripts of `make examples`

VENV ?= .venv
TORCH ?= torch==2.13.0
ifdef PYTHON
  PY := $(PYTHON)
else
  PY := $(VENV)/bin/python
endif
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: demo test lint bench docs examples hosts check-cuda emulate clean

demo: .setup-demo
	$(PY) -m alkernels demo

# A process a core, of one thread each: half the time, and no thread waits for another's core.
test: .setup-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

lint: .setup-test .setup-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'import sys, clang_format; sys.exit(clang_format.clang_format())' --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu')

bench: .setup-bench
	$(PY) -m pytest benchmarks

docs: .setup-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -f docs/mkdocs.yml

examples: .setup-examples
	@mkdir -p build/examples
	set -e; for script in docs/examples/*.py; do \
	  echo "== $$script"; $(PY) $$script --out build/examples/$$(basename $$script .py).png $(ARGS); \
	done

hosts: .setup-test
	PYTHON="$(PY)" tests/integrations/hosts.sh

check-cuda: .setup-test
	PYTHON="$(PY)" tests/check_cuda.sh

emulate: .setup-test
	PYTHON="$(PY)" tests/emulate.sh

# No build isolation: torch is installed once, and the extension is compiled against that one.
.setup-%: FORCE
	@if [ -z "$(PYTHON)" ] && [ ! -x "$(PY)" ]; then python3 -m venv "$(VENV)"; fi
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) install -q --no-compile '$(TORCH)'
	$(PIP) install -q --no-compile 'setuptools>=77' 'cmake>=3.22' ninja 'pybind11>=3.0' numpy
	$(PIP) install -q --no-compile --no-build-isolation -e '.[$*]'

FORCE:

clean:
	rm -rf build .venv alkernels/*.so *.egg-info
