#!/bin/sh
# build.sh [PYTHON [OUT]]: compiles savedmodel_run against the TensorFlow wheel that PYTHON has.
# Needs g++ and nothing else: the wheel brings the headers and the libraries.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
out=${2:-savedmodel_run}
# Found without importing it, which would take seconds.
tensorflow=$("$python" -c '
import importlib.util
print(importlib.util.find_spec("tensorflow").submodule_search_locations[0])')
# No symbol of libtensorflow_cc is referred to, but its static initialisers register the session
# factory and all kernels: --no-as-needed keeps it.
exec "${CXX:-g++}" -w -std=c++17 -O0 -D_GLIBCXX_USE_CXX11_ABI=1 -DEIGEN_MAX_ALIGN_BYTES=64 \
  -I"$tensorflow/include" "$here/savedmodel_run.cc" -o "$out" \
  -L"$tensorflow" -Wl,--no-as-needed -l:libtensorflow_cc.so.2 \
  -l:libtensorflow_framework.so.2 -Wl,-rpath,"$tensorflow"
