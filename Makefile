# Everything goes through `make install`, which needs Python 3.10 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONWARNINGS ?= ignore

.PHONY: install demo seeds test readme clean
install: $(VENV)/installed

$(VENV)/installed: settings.ini setup.py constraints-tested.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if (3,10) <= sys.version_info[:2] <= (3,13) else 'bnn_bn needs Python 3.10 to 3.13, this is '+sys.version.split()[0]+'; choose one with: make PYTHON=python3.12 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints-tested.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/bnn_demo

seeds: install
	$(BIN)/bnn_demo --seeds 3 --out runs/seeds

test: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 1 --do_print
	$(BIN)/ruff check -q nbs tests tools bench setup.py
	$(BIN)/python -m pytest -q tests

readme: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/readme.py

clean:
	rm -rf $(VENV) _proc build *.egg-info runs
