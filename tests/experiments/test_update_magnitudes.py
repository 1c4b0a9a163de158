"""MQ makes the updates of all matrices alike, on digits."""

import json

import pytest

from experiments import update_magnitudes


def test_mq_equalises_the_updates(tmp_path):
    config = update_magnitudes.Config(iterations=150, warmup=50, out=tmp_path)
    update_magnitudes.main(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    sgd, mq, adam = (row["largest_to_smallest"] for row in summary["methods"])
    assert mq < sgd / 10
    assert adam < sgd / 10
    assert mq < 10
    assert (tmp_path / "magnitudes.png").read_bytes().startswith(b"\x89PNG")


def test_the_warm_up_is_shorter_than_the_run(tmp_path):
    config = update_magnitudes.Config(iterations=10, warmup=10, out=tmp_path)
    with pytest.raises(SystemExit, match=r"shorter than the iterations.*10 and 10"):
        update_magnitudes.main(config)
