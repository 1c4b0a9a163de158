#!/bin/sh
# Every benchmark on the device of this machine:
#
#     sh benchmarks/all.sh h100
#
# writes benchmarks/results/*-h100.json and .png, each as soon as it is there. PYTHON names
# a Python that has pcjax's experiments extra (default: python). In the numbers of a GPU
# are XLA's settings of the moment; the JSON holds device, versions and settings.
set -eu
name=${1:?usage: sh benchmarks/all.sh NAME}
cd "$(dirname "$0")/.."
results=benchmarks/results
run() {
    echo "python -m $*" >&2
    "${PYTHON:-python}" -m "$@"
}
run benchmarks.kernels --net all --rounds 40 --json "$results/kernels-$name.json"
run benchmarks.whole_run --epochs 110 --seeds 5 --json "$results/whole-run-$name.json"
run benchmarks.epoch --json "$results/epoch-$name.json" --plot "$results/epoch-$name.png"
run benchmarks.safety --json "$results/safety-$name.json"
