"""What the scaling benchmark counts and works out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import hlo, payoff
from tests.tiers import thorough

PROGRAM = """\
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %gathered = f32[16,4]{1,0} all-gather(%x), replica_groups=[1,2]<=[2], dimensions={0}
  ROOT %r = (s32[], f32[8,4]) tuple(%i, %x)
}

%condition (s: (s32[], f32[8,4])) -> pred[] {
  %s.1 = (s32[], f32[8,4]) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (p: (s32[], f32[8,4]), q: bf16[5]) -> bf16[5] {
  %p = (s32[], f32[8,4]) parameter(0)
  %q = bf16[5]{0} parameter(1)
  %loop = (s32[], f32[8,4]) while(%p), condition=%condition, body=%body, LOOP
  %both = (bf16[5]{0}, f64[], /*index=2*/u8[2,3]{1,0}) all-reduce(%q, %c, %d), \
replica_groups={{0,1}}, to_apply=%add
  %start = f32[7]{0} all-reduce-start(%e), replica_groups={{0,1}}, to_apply=%add
  %done = f32[7]{0} all-reduce-done(%start)
  ROOT %first = bf16[5]{0} get-tuple-element(%both), index=0
}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"6"}}'


class Compiled:
    def __init__(self, text):
        self.as_text = lambda: text


def test_collectives_are_counted_as_often_as_they_run():
    assert hlo.collectives(Compiled(PROGRAM.replace("LOOP", KNOWN))) == {
        "all-gather": (6, 6, 6 * 16 * 4 * 4),
        "all-reduce": (1 + 1, 3 + 1, (5 * 2 + 8 + 6) + 7 * 4),
    }


def test_collectives_that_cannot_be_counted_are_refused():
    with pytest.raises(ValueError, match="a loop of unknown length"):
        hlo.collectives(Compiled(PROGRAM.replace("LOOP", "x={}")))
    started = PROGRAM.replace("LOOP", KNOWN).replace(
        " all-gather(", " all-gather-start("
    )
    with pytest.raises(ValueError, match="an asynchronous collective"):
        hlo.collectives(Compiled(started))


# For 2^20 operations an example: 2^10 s to compute an example, and 2^10 s to read the
# 2^21 bytes of the weights, for any number of examples.
HARDWARE = payoff.Hardware(rate=2.0**10, memory=2.0**11, bandwidth=2.0**8, latency=3.0)


def test_a_step_takes_the_longer_of_computing_and_reading():
    flops = 2.0**20
    assert payoff.step_seconds(flops, 4, HARDWARE) == 2.0**12
    assert payoff.step_seconds(flops, 0.5, HARDWARE) == 2.0**10


def test_speedups_follow_from_the_times():
    flops, parameters = 2.0**20, 2**14
    # A ring of four: 2 * 3/4 of 2^16 bytes at 2^8 bytes a second, and the latency.
    sending = 1.5 * 2**8 + 3
    assert payoff.all_reduce_seconds(4 * parameters, 4, HARDWARE) == sending
    large = payoff.speedup(flops, parameters, 64, 4, HARDWARE)
    assert large == pytest.approx(2**16 / (2**14 + sending), rel=1e-12)
    # A small batch reads as many weights on every device as on one.
    small = payoff.speedup(flops, parameters, 1, 4, HARDWARE)
    assert small == pytest.approx(2**10 / (2**10 + sending), rel=1e-12)
    assert payoff.speedup(flops, parameters, 64, 1, HARDWARE) == 1


# The benchmark with its second program alone, on nets of two layers.
SMALL = """
import runpy
from functools import partial
from benchmarks import payoff, workloads
every = payoff.programs
payoff.programs = lambda load: every(load)[1:2]
workloads.mlp = partial(workloads.mlp, depth=2)
runpy.run_module("benchmarks.scaling", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "run"),
    [(2, ["-c", SMALL]), *thorough([(4, ["-m", "benchmarks.scaling"])])],
)
def test_the_benchmark_runs(tmp_path, depth, run):
    file = tmp_path / "scaling.json"
    arguments = ["--devices", "2", "--width", "32", "--rounds", "1", "--json", file]
    done = subprocess.run(
        [sys.executable, *run, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "prove nothing about scaling" in done.stdout
    result = json.loads(file.read_text())
    numbers = 3073 * 32 + (depth - 2) * 33 * 32 + 33 * 10
    for row in result["scaling"]:
        expected = 0 if row["devices"] == 1 else 4 * (numbers + 1) / numbers
        assert row["bytes_per_parameter"] == pytest.approx(expected)
        assert row["milliseconds"][0] >= row["milliseconds"][1] > 0
    by_mesh = {json.dumps(row["mesh"]): row["sent"] for row in result["layouts"]}
    assert by_mesh['{"seeds": 2, "batch": 1}'] == {}
    assert "all-gather" in by_mesh['{"batch": 1, "model": 2}']
