"""Two versions side by side."""

from pathlib import Path

import pytest

from benchmarks import versions
from tests.tiers import thorough

HERE = Path(__file__).parents[2]
PAPERS = "[3072, 1024, 1024, 1024, 10]"


@pytest.fixture(params=["[3072, 4, 10]", *thorough([PAPERS])], autouse=True)
def sizes(request, monkeypatch):
    """A small net in the place of the paper's, which takes long to compile."""
    assert PAPERS in versions._WORKER
    worker = versions._WORKER.replace(PAPERS, request.param)
    monkeypatch.setattr(versions, "_WORKER", worker)


def test_both_versions_make_iterations():
    seconds = versions.measure(HERE, "mlp", 2)
    assert seconds.shape == (2, 2)
    assert (seconds > 0).all()


def test_a_folder_without_pcjax_is_named(tmp_path):
    """The environment may hold one, which is another version than what was meant."""
    with pytest.raises(SystemExit, match=r"versions: "):
        versions.measure(tmp_path, "mlp", 1)
