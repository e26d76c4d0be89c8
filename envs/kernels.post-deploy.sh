#!/usr/bin/env bash
# Run by Snakemake inside the environment of kernels.yaml, after conda has made it.
set -euo pipefail
if ! command -v nvcc > /dev/null; then
    echo "kernels: no nvcc here, so causal-conv1d and mamba-ssm are left out; torch's own path is used" >&2
    exit 0
fi
python -m pip install ninja packaging wheel "setuptools>=77"
# mamba-ssm declares packages that keepset does not use; both build against the torch that is there.
python -m pip install --no-deps --no-build-isolation causal-conv1d==1.7.0
MAMBA_FORCE_BUILD=TRUE python -m pip install --no-deps --no-build-isolation mamba-ssm==2.3.2.post1
