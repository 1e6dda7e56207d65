# make demo    the whole pipeline on a small corpus; VIDEOS=folder LABELS=file.csv WEIGHTS=file OUT=folder
# make test    the tests of every change, a quarter of an hour;  make test-unit: those that start no Ray cluster and do not wait long
# make test-cluster    what takes longer: faults, damage, jobs, autoscaling, several nodes; two hours on two cores
# make servers    object storage for these tests: s3rver and Azurite, with npm
# make check   lint, format, types and docs;  make docs: the pages as a site, site/index.html
#                make lock: requirements.lock again (UPGRADE=--upgrade: with the newest versions)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo_out
VIDEOS ?=
LABELS ?=
WEIGHTS ?=
UPGRADE ?=

# Dozens of processes run the same code: each would compile it anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-unit test-cluster servers check docs format lock clean

demo: $(VENV)/installed
	$(BIN)/python -m jobs.demo --out "$(OUT)" \
		$(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(LABELS),--labels "$(LABELS)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# By name: files of few long tests would else come last, alone.
test: check test-unit
	$(BIN)/python -m pytest -m "(slow or ray) and not cluster and not nightly" -n 2 --dist loadfile --no-loadscope-reorder

test-unit: $(VENV)/installed
	$(BIN)/python -m pytest -m "not ray and not slow and not cluster and not nightly" -n 3

test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m nightly -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "cluster and not nightly"

# Object storage of others, for tests/cluster/test_stores.py; rclone comes with the Python packages.
servers: $(VENV)/installed
	npm install --no-audit --no-fund --prefix $(VENV)/servers s3rver@3.7.1 azurite@3.37.0

check: $(VENV)/installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -q uv
	$(BIN)/uv pip compile pyproject.toml --extra timm --extra flow --extra aws --extra gcp --extra azure -o requirements.lock $(UPGRADE) \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-python-downloads \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' >/dev/null

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo_out site
