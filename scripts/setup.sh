#!/usr/bin/env bash
# Makes the virtual environment with everything that building, serving, measuring and testing need.
#
#   PELTON_VENV    folder of the environment (default: .venv); an existing one is used as it is
#   PELTON_PYTHON  interpreter to make it with (default: python3, else python3.12 or python3.11)
#
# A machine without an NVIDIA GPU gets the CPU build of torch and never the gigabytes of CUDA packages: if no CPU build
# can be had, this stops and says so. A second run with nothing changed ends at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

readonly TORCH_RANGE='torch>=2.11,<2.14'
readonly CPU_TORCH='torch==2.13.0+cpu'
# Torch from PyPI is built with CUDA 13, which needs this driver or a newer one.
readonly OLDEST_CUDA13_DRIVER=580
readonly VENV=${PELTON_VENV:-.venv}
readonly PYTHON=$VENV/bin/python
readonly STAMP=$VENV/.pelton-setup
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

has_gpu() { [[ $(uname -s) == Linux ]] && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# What the environment depends on; when it is as at the last run, nothing is to be done.
state() {
    local device=cpu
    if has_gpu; then device=gpu; fi
    # -P keeps a stray module in this folder from standing in for the standard library's.
    "$PYTHON" -P - "$device" <<'PY'
import hashlib, pathlib, sys
content = b"".join(pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "scripts/setup.sh"))
print(hashlib.sha256(content).hexdigest(), sys.version.split()[0], sys.argv[1], pathlib.Path.cwd())
PY
}

find_python() {
    local candidate found=
    for candidate in ${PELTON_PYTHON:-python3 python3.12 python3.11}; do
        if ! "$candidate" --version >/dev/null 2>&1; then continue; fi
        found=$candidate
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import venv, ensurepip' 2>/dev/null ||
                die "$candidate has no venv module; on Debian or Ubuntu: apt-get install python3-venv"
            command -v "$candidate"
            return
        fi
    done
    if [[ -n $found ]]; then
        die "Python 3.11 or newer is needed, found $("$found" --version 2>&1); install python3.11 or python3.12 with" \
            "its venv package, or set PELTON_PYTHON"
    fi
    die "no ${PELTON_PYTHON:-python3} found; on Debian or Ubuntu: apt-get install python3 python3-venv"
}

make_venv() {
    if [[ -x $PYTHON ]]; then
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            die "$VENV was made with $("$PYTHON" --version); remove it, Pelton needs Python 3.11 or newer"
        "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null ||
            die "$VENV has no pip; remove it or add one"
        return
    fi
    local python
    python=$(find_python) || exit 1
    say "making $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" || die "making $VENV failed; on Debian or Ubuntu: apt-get install python3-venv"
}

pip_install() { "$PYTHON" -m pip install --quiet "$@"; }

uv_install() {
    local uv
    uv=$(command -v uv) || uv=$VENV/bin/uv
    if [[ ! -x $uv ]]; then pip_install uv || return 1; fi
    "$uv" pip install --quiet --python "$PYTHON" "$@"
}

# Prints "VERSION CUDA" of the environment's torch, CUDA being "cpu" for a CPU build; nothing if there is none in range.
# Reads torch/version.py alone: a torch that cannot be imported is doctor's matter, and importing takes seconds.
torch_build() {
    "$PYTHON" -P - "$TORCH_RANGE" <<'PY' 2>/dev/null || true
import importlib.metadata, importlib.util, pathlib, runpy, sys
from pip._vendor.packaging.requirements import Requirement
version = importlib.metadata.version("torch")
if Requirement(sys.argv[1]).specifier.contains(version, prereleases=True):
    origin = pathlib.Path(importlib.util.find_spec("torch").origin)
    print(version, runpy.run_path(str(origin.with_name("version.py"))).get("cuda") or "cpu")
PY
}

# Prints what of CUDA is installed; fails if nothing is.
cuda_packages() {
    "$PYTHON" -m pip list --format=freeze 2>/dev/null | grep -E '^(nvidia-(cu|nccl|nvjitlink|nvtx|nvshmem)|cuda-)'
}

install_gpu_torch() {
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    if [[ ${driver%%.*} =~ ^[0-9]+$ ]] && ((${driver%%.*} < OLDEST_CUDA13_DRIVER)); then
        say "driver $driver is older than $OLDEST_CUDA13_DRIVER: installing torch for its CUDA"
        uv_install --torch-backend=auto "$TORCH_RANGE" ||
            die "no torch for driver $driver could be had; a driver from $OLDEST_CUDA13_DRIVER on takes the usual one"
        return
    fi
    say "GPU found: installing torch with CUDA (several GB)"
    pip_install "$TORCH_RANGE" || die "installing torch failed; see above"
    if [[ $(torch_build) == *' cpu' ]]; then
        say "pip gave a CPU build: asking for the one of this machine's driver"
        uv_install --reinstall --torch-backend=auto "$TORCH_RANGE" || die "no CUDA build of torch could be had"
    fi
}

install_cpu_torch() {
    if [[ $(uname -s) != Linux ]]; then
        say "installing torch"
        pip_install "$TORCH_RANGE" || die "installing torch failed; see above"
        return
    fi
    say "no GPU: installing the CPU build of torch"
    if pip_install "$CPU_TORCH" 2>/dev/null; then return; fi
    say "pip knows no CPU build; asking uv, which knows where they are"
    uv_install --torch-backend=cpu "$TORCH_RANGE" ||
        die "no CPU build of torch could be had. Fetch a wheel of $CPU_TORCH elsewhere and run again with" \
            "PIP_FIND_LINKS=FOLDER, or install torch into $VENV yourself. PyPI alone would bring CUDA, several GB."
}

install_torch() {
    local build
    build=$(torch_build)
    if [[ -z $build ]]; then
        if has_gpu; then install_gpu_torch; else install_cpu_torch; fi
    elif has_gpu && [[ $build == *' cpu' ]]; then
        say "torch ${build% *} is a CPU build, but this machine has a GPU"
        uv_install --reinstall --torch-backend=auto "$TORCH_RANGE" || die "no CUDA build of torch could be had"
    else
        say "keeping torch ${build% *}"
    fi
    [[ -n $(torch_build) ]] || die "torch was installed, but none in the range $TORCH_RANGE is there"
}

install_project() {
    local version held
    version=$(torch_build)
    version=${version% *}
    held=$(mktemp)
    echo "torch==$version" >"$held"
    say "installing pelton with what its engine and tests need, beside torch $version"
    if ! pip_install --constraint "$held" --editable '.[engine,dev]'; then
        rm -f "$held"
        die "installing pelton failed; see above"
    fi
    rm -f "$held"
}

check_result() {
    local build cuda
    build=$(torch_build)
    if has_gpu || [[ $(uname -s) != Linux ]]; then return; fi
    if [[ $build != *' cpu' ]]; then
        die "this machine has no GPU but torch $build is a CUDA build; remove $VENV and run again"
    fi
    if cuda=$(cuda_packages); then
        die "this machine has no GPU but these came along: $(echo "$cuda" | tr '\n' ' '); remove $VENV and run again"
    fi
}

if [[ -x $PYTHON && -f $STAMP && $(cat "$STAMP") == "$(state)" ]]; then
    say "$VENV is up to date"
    exit 0
fi
make_venv
rm -f "$STAMP"
install_torch
install_project
check_result
state >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
say "done: $VENV, torch $(torch_build)"
