#!/bin/sh
# The benchmarks that need nothing but this machine and its device:
#
#     sh benchmarks/all.sh h100
#
# writes benchmarks/results/*-h100.json and .png; what fails does not stop the others.
# PYTHON names a Python that has pcjax's experiments extra (default: python). The peers
# (benchmarks.peers) install other libraries, the scaling needs several devices.
set -u
name=${1:?usage: sh benchmarks/all.sh NAME}
cd "$(dirname "$0")/.." || exit
results=benchmarks/results
failed=0
run() {
    echo "python -m $*" >&2
    "${PYTHON:-python}" -m "$@" || failed=1
}
run benchmarks.kernels --net all --rounds 40 --json "$results/kernels-$name.json"
run benchmarks.whole_run --epochs 110 --seeds 5 --json "$results/whole-run-$name.json"
run benchmarks.epoch --json "$results/epoch-$name.json" --plot "$results/epoch-$name.png"
run benchmarks.safety --json "$results/safety-$name.json"
exit $failed
