# make demo    the whole pipeline on a small corpus; VIDEOS=folder LABELS=file.csv WEIGHTS=file OUT=folder
# make test    every test but those of clusters;  make test-unit: those that start no Ray cluster and do not wait long
# make test-cluster    tests on clusters of their own (jobs, autoscaling, several nodes): half an hour on two busy cores
# make check   lint and format
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo_out
VIDEOS ?=
LABELS ?=
WEIGHTS ?=

.PHONY: demo test test-unit test-cluster check format clean

demo: $(VENV)/installed
	$(BIN)/python -m jobs.demo --out "$(OUT)" \
		$(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(LABELS),--labels "$(LABELS)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

test: test-unit
	$(BIN)/python -m pytest -m "slow and not ray and not cluster" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not cluster"

test-unit: $(VENV)/installed
	$(BIN)/python -m pytest -m "not ray and not slow and not cluster" -n auto --maxprocesses 4

test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest -m cluster

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo_out
