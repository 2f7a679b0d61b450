# Two commands: `make demo` and `make test`, each alone enough on a fresh clone with python3, pip, make and g++.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Two processes, each of whole files, as many fixtures of a file train a network once for all its tests.
PYTEST := $(RUN) -m pytest -q -n 2 --dist loadfile
SOURCES := setup.py pyproject.toml requirements.txt $(wildcard csrc/*)
KERNELS := $(wildcard csrc/* benchmarks/*.cu tests/gpu_shim/*.h)

.PHONY: demo test check lint install sanitize gpu clean

install: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV) \
	  || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --requirement requirements.txt
	$(RUN) -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(KERNELS)
	$(RUN) -m mypy

# While working on it: all but the tests that are marked as slow.
check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

# The GPU kernels on the host under the sanitizers; not part of `make test`.
sanitize: install
	$(RUN) benchmarks/sanitize.py

# On a machine with a CUDA GPU and nvcc: builds, tests and times the kernels. Elsewhere it says so, status 2.
gpu: install
	$(RUN) benchmarks/gpu.py

demo: install
	$(RUN) create_phantom_dataset.py --output_dir=demo/phantoms --cases=4 --first_case=901 --overwrite
	$(RUN) implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \
	  --test_dir_in=demo/phantoms --test_dir_out=demo/results
	@echo "Meshes (*_mesh.ply, open them in 3D Slicer), label maps, previews (*.png), statistics.csv and report.html: demo/results"

clean:
	rm -rf $(VENV) build demo *.egg-info implicitmeshnet/*.so
