# make          set up .venv and run the study of config.yaml, report included
# make test     set up what tests need, run the linters and the tests
#
# make test-gpu GPU_PYTHON=python3 WHEELS=
#               the kernels on a GPU, and how fast they are there; without a network
#
# make test-crash, test-report, test-cluster, test-conda
#               longer tests, each by itself; report and cluster install Debian packages (as root)
#
# CORES=2       how many CPU cores to use
# TORCH_INDEX=  a package index to take torch from (PyTorch's CPU or CUDA index, say); without it
#               the default index decides, which may mean the CUDA build

PYTHON ?= python3
CORES ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
TORCH_INDEX ?=
GPU_PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,$(PYTHON))
WHEELS ?=
BIN := .venv/bin
# Modules are compiled when they are first imported: most of torch's and transformers' never are.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
STUDY := results/$(shell sed -n 's/^study: *\([^ ]*\).*/\1/p' config.yaml)

# Recipes see the environment's commands, as an activated shell would.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: all study report test lint check benchmark clean
.PHONY: test-crash test-report test-cluster test-conda compile-kernels test-mamba-ssm test-gpu
.DEFAULT_GOAL := all

all: report

# Snakemake looks for jobs to start once per timespan for every job that has ended: over 200 jobs,
# and with its default of a second, that took 80 s of CPU. It waits for the last timespan at its end.
study: .venv/.study
	snakemake --cores $(CORES) --max-jobs-per-timespan 400/4s

report: study
	snakemake --report $(STUDY)/report.zip

# torch goes first and alone: see requirements.txt.
.venv/.study: requirements.txt requirements-data.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.txt)"
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -r requirements-data.txt
	$(INSTALL) --no-deps --editable .
	touch $@

.venv/.test: .venv/.study requirements-dev.txt requirements-harness.txt
	$(INSTALL) -r requirements-dev.txt -r requirements-harness.txt
	touch $@

lint: .venv/.test
	ruff check src tests workflow/scripts benchmarks examples
	ruff format --check src tests workflow/scripts benchmarks examples
	snakefmt --check Snakefile workflow/rules
	mypy
	lint-imports
	snakemake --lint

# The workflow's tests run Snakemake on all cores themselves.
test: lint
	pytest -n $(CORES) --dist loadscope --ignore=tests/workflow
	pytest tests/workflow

# docs/RUNNING.md says what each of these does to the machine.
APT := apt-get install -y --no-install-recommends

test-crash: .venv/.test
	pytest -m crash tests/workflow/test_crash.py

test-report: .venv/.test requirements-report.txt
	command -v chromium chromedriver > /dev/null || { apt-get update && $(APT) chromium chromium-driver; }
	$(INSTALL) -r requirements-report.txt
	pytest -m browser tests/workflow/test_report.py

test-cluster: .venv/.test requirements-cluster.txt
	command -v slurmctld slurmd munged > /dev/null || { apt-get update && $(APT) slurm-wlm munge; }
	$(INSTALL) -r requirements-cluster.txt
	pytest -m cluster tests/workflow/test_slurm.py tests/workflow/test_template.py

test-conda: .venv/.test
	pytest -m conda tests/workflow/test_conda.py

benchmark: .venv/.study
	python benchmarks/masked_evaluation.py

# Every Triton kernel for sm_90, without a GPU: registers, stack and shared memory.
compile-kernels: .venv/.test
	env -u TRITON_INTERPRET python -m keepset.kernels.compile --out benchmarks/kernel_registers.csv

# mamba-ssm in a folder of its own, on the path of this one command only.
.mamba-ssm/.installed: requirements-mamba-ssm.txt .venv/.test
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(INSTALL) --no-deps \
		--no-build-isolation --upgrade --target .mamba-ssm -r requirements-mamba-ssm.txt
	touch $@

test-mamba-ssm: .mamba-ssm/.installed
	PYTHONPATH=.mamba-ssm pytest tests/kernels/check_mamba_ssm.py

# Nothing is installed for it: any Python with torch, Triton and pytest, and a folder of wheels for
# what it lacks, mamba-ssm among them.
test-gpu:
	$(GPU_PYTHON) benchmarks/on_gpu.py $(if $(WHEELS),--wheels $(WHEELS))

clean:
	rm -rf .venv .mamba-ssm results .snakemake
