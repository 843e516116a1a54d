# make demo: photos of a rendered place to a COLMAP model, compared with the exact truth
# make test: the tests
# Both set up a virtual environment in .venv first; nothing but Python (3.10 or newer) is needed.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

demo: $(VENV)/installed
	$(RUN) -m pipelines.demo --outputs demo

test: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q -n 2 --dist loadfile

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo

.PHONY: demo test clean
