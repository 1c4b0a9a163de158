"""The flags that have XLA compile quickly: when they are set, and when they are not."""

import os

import jax
import pytest

from experiments.common import compiling, harness
from experiments.common.options import Options


@pytest.fixture
def flags(monkeypatch):
    """What is in the environment afterwards."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("XLA_FLAGS")
    return lambda: os.environ.get("XLA_FLAGS")


def test_flags_that_are_given_stay(flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--given")
    compiling.compile_quickly()
    assert flags() == "--given"


@pytest.mark.parametrize("version", [(0, 6, 0), (0, 10, 2)])
def test_versions_that_were_tried_know_the_flags(flags, monkeypatch, version):
    monkeypatch.setattr(jax, "__version_info__", version)
    compiling.compile_quickly()
    assert flags().split() == list(compiling.FLAGS)


@pytest.mark.parametrize("version", [(0, 11, 0), (1, 0, 0)])
def test_others_might_end_the_process_at_them(flags, monkeypatch, version):
    monkeypatch.setattr(jax, "__version_info__", version)
    compiling.compile_quickly()
    assert flags() is None


@pytest.mark.parametrize("preset", ["smoke", "cpu"])
def test_the_command_line_sets_them_at_smoke(flags, monkeypatch, preset):
    monkeypatch.setattr("sys.argv", ["command", "--preset", preset])
    seen = []
    harness.cli(seen.append, Options)
    assert seen == [Options(preset=preset)]
    assert (flags() is not None) == (preset == "smoke")
