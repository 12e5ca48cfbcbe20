# `make book` renders what is committed, `make test` proves it, `make run` executes the chapters anew, in place.
# `make browser` looks at every page of it in a browser.
# Each needs only Python >= 3.11 and make, and makes a virtual environment in .venv first.
# `make lowest` and `make newest` run the package's tests with the oldest versions that it allows, and with the newest.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# On small matrices two threads can be many times slower than one on a busy two-core machine.
export OMP_NUM_THREADS ?= 1
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: book browser test lint run address lowest newest clean

book: $(INSTALLED)
	$(BIN)/jupyter-book build -W -n --keep-going .
	$(BIN)/python tools/check_pages.py _build/html
	@echo "Open _build/html/index.html in a browser."

# Every page in a real browser: needs a Chromium on the machine (Debian: apt-get install chromium).
browser: book
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest tests/browser

# The library's tests run by themselves, where what only the book needs cannot be imported.
test: lint
	MIGELIB_LIBRARY_ALONE=1 $(BIN)/python -m pytest -n 2 tests/library
	$(BIN)/python -m pytest -n 2 tests/laboratory tests/book book

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

run: $(INSTALLED)
	$(BIN)/python tools/execute.py book/*.ipynb

# Moves the project: rewrites its address wherever it stands.
address:
	@test -n "$(URL)" || { echo "Name the address: make address URL=https://github.com/OWNER/NAME"; exit 1; }
	$(PYTHON) tools/address.py $(URL)

lowest: RESOLUTION = lowest-direct
newest: RESOLUTION = highest
lowest newest:
	$(PYTHON) -m venv .venv-$@
	.venv-$@/bin/python -m pip install --quiet uv
	.venv-$@/bin/uv pip install --python .venv-$@/bin/python --resolution $(RESOLUTION) --editable '.[test]'
	MIGELIB_LIBRARY_ALONE=1 .venv-$@/bin/python -m pytest -n 2 tests/library
	.venv-$@/bin/python -m pytest -n 2 tests/laboratory

clean:
	rm -rf .venv .venv-lowest .venv-newest _build

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one by: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test]'
	touch $@
