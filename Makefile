# Every target sets up what it needs: a virtual environment with the pinned packages of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install demo test test-slow families lint docs bench wheel clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[explore,nnsight,export,ray,test]'
	touch $@

demo: install
	$(BIN)/causal-tracing demo

# A file's tests stay in one process, which makes its fixtures once. Not loadgroup: xdist 3.8 groups nothing under pytest 9.2.
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What the tests above take a fixed sample of, in full.
test-slow: install
	$(BIN)/python -m pytest -m slow

# Every model type of transformers, tiny and random, against bare hooks: half an hour, and resumes where it was
# stopped; make families ONLY=llama,gpt2 for single ones.
families: install
	PYTHONPATH=tests $(BIN)/python -m model_types $(if $(ONLY),--only $(ONLY))

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# The documentation site, every warning an error, and a browser's look at it. Sphinx lives in an environment of its own,
# which sees the packages of .venv beneath it.
DOCS := .venv-docs/bin
docs: .venv-docs/installed
	rm -rf docs/_build/html
	OMP_NUM_THREADS=1 $(DOCS)/python -m sphinx --builder html --jobs 2 --nitpicky --fail-on-warning --keep-going --quiet --doctree-dir docs/_build/doctrees docs docs/_build/html
	$(DOCS)/python docs/site/notebook.py --check
	SITE=docs/_build/html $(BIN)/python -m pytest --quiet tests/docs/test_site.py
	@echo "docs/_build/html/index.html"

.venv-docs/installed: $(STAMP) pyproject.toml constraints.txt
	test -x $(DOCS)/python || $(BIN)/python -m venv .venv-docs
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > "$$($(DOCS)/python -c 'import site; print(site.getsitepackages()[0])')/beneath.pth"
	$(DOCS)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# Other tools' sweeps beside ours: the peers live in an environment of their own, so that the tests never see them.
bench:
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	.venv-bench/bin/python benchmarks/coming_from.py
	.venv-bench/bin/python benchmarks/direct_paths.py
	.venv-bench/bin/python benchmarks/speed.py
	.venv-bench/bin/python benchmarks/noise.py
	.venv-bench/bin/python benchmarks/mediators.py
	.venv-bench/bin/python benchmarks/mediators.py --only neurons --position 2
	.venv-bench/bin/python benchmarks/throughput.py

# The package as people install it: built, and asked in an environment that has never seen this folder.
wheel: install
	rm -rf dist .venv-wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cp tests/installed.py dist/ && cd dist && ../.venv-wheel/bin/python -I installed.py

clean:
	rm -rf .venv .venv-bench .venv-docs .venv-wheel dist docs/_build
