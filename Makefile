# `make book` renders what is committed, `make test` proves it, `make run` executes the chapters anew, in place.
# Each needs only Python >= 3.11 and make, and makes a virtual environment in .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# On small matrices two threads can be many times slower than one on a busy two-core machine.
export OMP_NUM_THREADS ?= 1
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: book test lint run clean

book: $(INSTALLED)
	$(BIN)/jupyter-book build -W -n --keep-going .
	$(BIN)/python tools/check_pages.py _build/html
	@echo "Open _build/html/index.html in a browser."

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

run: $(INSTALLED)
	$(BIN)/jupyter execute --inplace book/*.ipynb

clean:
	rm -rf .venv _build

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one by: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test]'
	touch $@
