"""The experiment end to end, at its smallest, and what its numbers must say."""

import json

import jax
import numpy as np
import pytest

from experiments.implicit_sgd import experiment as implicit_sgd
from experiments.implicit_sgd import measures, parts, rules
from experiments.implicit_sgd.measures import summary
from tests.tiers import thorough


@pytest.fixture(scope="module", params=["small", *thorough(["whole"])])
def results(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("implicit_sgd")
    whole = request.param == "whole"
    hidden = (8, 8) if whole else (8,)
    config = implicit_sgd.Config(preset="smoke", out=out, hidden=hidden)
    with pytest.MonkeyPatch.context() as patch:
        if not whole:  # the others only stand beside these in the figures
            compared = rules.CORRECTED, rules.PROOF, rules.PRINTED
            patch.setattr(rules, "RULES", compared)
            patch.delitem(implicit_sgd.ACTIVATIONS, "relu")
            # Programs of their own, and not one for every operation in them.
            patch.setattr(parts, "compare", jax.jit(parts.compare))
            patch.setattr(measures, "norm", jax.jit(measures.norm))
        implicit_sgd.main(config)
    assert not jax.config.jax_enable_x64  # as it was
    for name in (
        "theorem1",
        "inference",
        "limit",
        "theorem2",
        "directions",
        "mini_batch",
    ):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "results.json").read_text())


def medians(rows, key):
    return np.array([row[key]["median"] for row in rows])


def test_what_made_the_results_is_in_them(results):
    assert results["command"].startswith("python -m experiments.implicit_sgd")
    assert results["config"]["preset"] == "smoke"
    assert results["versions"]["jax"] == jax.__version__
    assert results["seconds"] > 0
    assert results["device"]


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    config = implicit_sgd.Config(preset="smoke", out=tmp_path / "file" / "out")
    with pytest.raises(SystemExit, match=r"file.out cannot be used: .*--out"):
        implicit_sgd.main(config)


def test_theorem_1(results):
    found = results["theorem1"]["rules"]
    assert [s["converged"] for s in results["theorem1"]["solver"]] == ["2 of 2"] * 2
    assert (medians(found["IL, corrected weights"], "distance") < 1e-7).all()
    for name in ("IL, Theorem 1 as in its proof", "IL, Theorem 1 as printed"):
        assert (medians(found[name], "distance") > 1e-4).all()
        assert (medians(found[name], "gap") < 1e-10).all()
    # The explicit step is off by the order of beta.
    explicit = medians(found["BP"], "distance")
    assert 5 < explicit[1] / explicit[0] < 15
    static = results["limit"]["static"]["IL, corrected weights"]
    assert static[-1]["distance"]["median"] < 1e-7 < static[0]["distance"]["median"]


def test_theorem_2(results):
    found = results["theorem2"]
    assert found["explicit"]["slope"]["median"] == pytest.approx(2, abs=0.1)
    assert found["newton"]["slope"]["median"] == pytest.approx(3, abs=0.1)


def test_mini_batches(results):
    found = results["mini_batch"]["rows"]
    assert all(row["distance"] < 1e-7 for row in found["IL, corrected weights"])
    assert all(
        row["distance"] > 1e-4 for row in found["implicit step of the mean loss"]
    )


def test_summaries_leave_out_what_is_not_valid():
    values = np.array([[1.0, 2.0, 3.0, 100.0], [np.nan, 5.0, np.inf, 7.0]])
    found = summary(values, np.array([True, True, True, False]))
    assert found["median"] == [2.0, 5.0]
    assert found["count"] == [3, 1]
    assert found["lower"] == [1.5, 5.0]
    assert summary(np.array([np.nan]))["median"] is None


def test_the_command_line_refuses_what_it_does_not_know(tmp_path):
    config = implicit_sgd.Config(dataset="nothing", preset="smoke", out=tmp_path)
    with pytest.raises(ValueError, match="Unknown data set 'nothing'"):
        implicit_sgd.main(config)
