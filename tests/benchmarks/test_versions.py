"""Two versions side by side."""

from pathlib import Path

import pytest

from benchmarks import versions

HERE = Path(__file__).parents[2]


def test_both_versions_make_iterations():
    seconds = versions.measure(HERE, "mlp", 2)
    assert seconds.shape == (2, 2)
    assert (seconds > 0).all()


def test_a_folder_without_pcjax_is_named(tmp_path):
    """The environment may hold one, which is another version than what was meant."""
    with pytest.raises(SystemExit, match=r"versions: "):
        versions.measure(tmp_path, "mlp", 1)
