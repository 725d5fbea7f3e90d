# make run    the three notebooks on DATASET (default: the built-in Synthetic), into outputs/
# make test   the notebooks against their stored outputs, and the tests
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

.PHONY: run test clean

.venv/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(VENV_BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

run: .venv/installed
	mkdir -p "$(OUT)"
	for notebook in $(NOTEBOOKS); do \
		$(VENV_BIN)/python -m papermill $$notebook.ipynb "$(OUT)/$$notebook.ipynb" -p dataset "$(DATASET)" || exit 1; \
	done
	@echo "Figures, tables and the executed notebooks are in $(OUT)/"

test: .venv/installed
	$(VENV_BIN)/python -m pytest --nbval

clean:
	rm -rf .venv
