# `make install` needs Python 3.10 to 3.13, the site (`make docs`) 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SITE := .venv-docs
export PYTHONWARNINGS ?= ignore

# the notebooks of `make quick`: from the sign to a Learner, without the long trainings
QUICK := ^(00|01|02|10|11|12|20|22)_

ASK = import sys; v = sys.version_info[:2]; \
  sys.exit(0 if $(1) <= v <= $(2) else 'this needs Python %s to %s and has %s; \
  choose one with: make PYTHON=python3.12 ...' % ('%d.%d' % $(1), '%d.%d' % $(2), '%d.%d' % v))

.PHONY: install demo seeds wheel test quick coverage mutants compiled-mutants docs readme runtime web bench clean
install: $(VENV)/installed

# an environment without pip is one whose making was stopped
$(VENV)/installed: settings.ini setup.py constraints-tested.txt
	@$(PYTHON) -c "$(call ASK,(3,10),(3,13))"
	$(BIN)/python -m pip -V >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints-tested.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/bnn_demo --force

seeds: install
	$(BIN)/bnn_demo --seeds 3 --out runs/seeds --force

# the package for another environment: pip install dist/bnn_bn-*.whl
# setuptools would put modules into it that an earlier build has left in build/
wheel: install
	rm -rf build
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

# two notebooks or test files at a time, each on one thread
test: export OMP_NUM_THREADS = 1
test: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --do_print
	$(BIN)/ruff check -q nbs tests tools bench docs setup.py
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

# what most mistakes break, in a few minutes
quick: install
	$(BIN)/ruff check -q nbs tests tools bench docs setup.py
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_links.py tests/test_notebooks.py \
	  tests/test_layers.py tests/test_traps.py -k 'not in_step and not A_bf and not A_bn and not A_none'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 1 --file_re '$(QUICK)'

# lines of the library that tests and the chapters' cells run, a part at a time: it goes on where it
# was stopped. COVERED names what is run, such as tests/test_clip.py; OUT a file for the figures
COVERED ?= tests tools/mutants
OUT ?=
coverage: export OMP_NUM_THREADS = 1
coverage: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/line_coverage.py $(COVERED) $(if $(OUT),--out $(OUT))

# does a test fail when the code is changed? MUTATED names modules, such as 'bnn_bn.agc*'
MUTATED ?=
mutants: install
	$(BIN)/python -m pip install -q --disable-pip-version-check 'mutmut>=3.8'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mutmut run $(MUTATED)
	$(BIN)/mutmut results

# the same for the engine and its kernels: MUTATED=onebit.engine, onebit.kernels or onebit.tiles
compiled-mutants: install
	$(BIN)/python -m pip install -q --disable-pip-version-check 'mutmut>=3.8'
	mkdir -p mutants
	$(BIN)/python tools/mutate_code.py $(MUTATED) --out mutants/$(MUTATED).jsonl

# the site: _site/html; its environment has no torch, the pages are made from files
docs: $(SITE)/installed
	$(SITE)/bin/python docs/pages.py
	$(SITE)/bin/python -m sphinx -q -W --keep-going -c docs -d _site/cache _site/src _site/html
	@echo 'the site: _site/html/index.html'

$(SITE)/installed: docs/requirements.txt
	@$(PYTHON) -c "$(call ASK,(3,11),(3,14))"
	$(SITE)/bin/python -m pip -V >/dev/null 2>&1 || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	touch $@

readme: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/readme.py

# the part that runs packed files, without torch: dist/bnn_runtime-*.whl
runtime: install
	$(BIN)/python tools/runtime.py

# two networks as pages: _web/fashion/index.html and _web/cifar10/index.html
web: install
	$(BIN)/python tools/web.py

# all rivals in environments of their own, their speed and whether they are right: runs/rivals/
# BENCH=--quick sees in some minutes that all of it runs
BENCH ?=
bench: install
	$(BIN)/python bench/all.py $(BENCH)

clean:
	rm -rf $(VENV) $(SITE) .venv-bench .coverage_parts _proc _site _web build *.egg-info runs
