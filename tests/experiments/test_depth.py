"""The experiments on equilibria and depth, end to end on digits."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import depth, equilibrium
from experiments.common.settings import settings
from experiments.depth import gradients as depth_gradients
from experiments.depth import plots
from experiments.depth import shown as depth_shown
from experiments.depth.cells import Cell, methods, rates, sized
from experiments.equilibrium import experiment, shown
from tests.tiers import thorough

PNG = b"\x89PNG"


@pytest.mark.parametrize("whole", [False, *thorough([True])])
def test_equilibrium_smoke(tmp_path, monkeypatch, whole):
    if not whole:
        kept = ("errors, no rate", "simultaneous, step 0.1")
        methods = {name: equilibrium.METHODS[name] for name in kept}
        monkeypatch.setattr(experiment, "METHODS", methods)
        monkeypatch.setattr(equilibrium, "METHODS", methods)
        small = dataclasses.replace(
            equilibrium.EXPERIMENT.sizes["smoke"],
            nets=(experiment.Net("tanh", 1, True),),
            newton=(4,),
        )
        monkeypatch.setitem(equilibrium.EXPERIMENT.sizes, "smoke", small)
    equilibrium.main(equilibrium.Config(out=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    for name in ("passes", "cosine"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    nets = list(found["nets"].values())
    assert len(nets) == (2 if whole else 1)
    smooth = nets[0]
    assert all(smooth["converged"])
    best, plain = (
        shown.arrival(found["passes"], smooth["errors"][name])
        for name in ("errors, no rate", "simultaneous, step 0.1")
    )
    assert best is not None
    assert plain is None or best < plain
    for net in nets:
        assert len(net["errors"]) == len(equilibrium.METHODS)
        for energies in net["energies"].values():
            assert energies[0] == np.float32(net["initial_energy"])
            assert min(energies) > 0.99 * net["energy"]


def test_arrival_is_where_errors_stay_small():
    passes = [0, 1, 2, 4, 8]
    assert shown.arrival(passes, [1.0, 1e-4, 1.0, 1e-4, 1e-5]) == 4
    assert shown.arrival(passes, [1e-4, 1e-5]) == 0
    assert shown.arrival(passes, [1.0, 1e-4, None]) is None
    # A first step without a rate takes a Hessian-vector product.
    assert shown.spent("errors, no rate", passes) == [0, 3, 4, 6, 10]
    assert shown.spent("errors, step 0.1", passes) == passes
    found = experiment.shown_passes(1000)
    assert found[:101] == list(range(101))
    assert sorted(set(found)) == found
    assert 960 < found[-1] <= 1000


def test_nets_are_chosen_by_words_of_their_titles():
    nets = experiment.EXPERIMENT.sizes["cpu"].nets
    assert experiment.select(nets, ()) == nets
    chosen = experiment.select(nets, ("relu", "conv"))
    assert chosen == (*nets[5:7], nets[8])
    with pytest.raises(ValueError, match=r"--nets: no net has 'gelu' .*relu, 3 hidden"):
        experiment.select(nets, ("relu", "gelu"))


@pytest.mark.parametrize("whole", [False, *thorough([True])])
def test_depth_smoke(tmp_path, monkeypatch, whole):
    if not whole:
        kept = ("SeqIL T=1", "ePC", "PC")
        every = depth_gradients.compared

        def compared(settings):
            return {name: every(settings)[name] for name in kept}

        monkeypatch.setattr(depth_gradients, "compared", compared)
        small = dataclasses.replace(
            depth.EXPERIMENT.sizes["smoke"],
            cells=(Cell("residual", "muPC", 2, 8),),
            methods=("BP-Adam",),
        )
        monkeypatch.setitem(depth.EXPERIMENT.sizes, "smoke", small)
    depth.main(depth.Config(out=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())["results"]
    for name in ("error", "likeness", "likeness_to_equilibrium", "curvature"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    (cell,) = found["cells"].values()
    assert set(cell["methods"]) == {"BP-Adam", *(["PC-Adam"] if whole else [])}
    seen = cell["methods"]["BP-Adam"]["gradients"]["fresh"]
    cosines = {name: like["cosine"] for name, like in seen["to_backprop"].items()}
    np.testing.assert_allclose(
        cosines["equilibrium"], seen["to_equilibrium"]["BP"]["cosine"], rtol=1e-5
    )
    # A small step of all errors is backprop, where many lead is not.
    assert cosines["ePC"][0] > 1 - 1e-6
    assert cosines["SeqIL T=1"][0] > cosines["equilibrium"][0]
    residuals = seen["residuals"]
    assert max(residuals["equilibrium"], residuals["PC"]) < 1e-3 < residuals["ePC"] < 1
    assert seen["settled"] == 1.0
    assert 1 <= seen["error_curvature"] < 3


def test_whether_a_method_trains_deep_is_stated():
    def found(test):
        return {"choice": {"test": [test], "point": 0}}

    methods = {"BP-Adam": 0.9, "SeqIL-MQ": 0.895, "PC-Adam": 0.92}
    cell = {"depth": 64, "methods": {k: found(v) for k, v in methods.items()}}
    seconds = {"BP-Adam": 1.0, "SeqIL-MQ": 1.9, "PC-Adam": 9.0}
    claim = depth_shown._reached("cell", cell, seconds)
    assert claim.holds
    assert claim.here == "SeqIL-MQ"
    assert not depth_shown._reached("cell", cell, seconds | {"SeqIL-MQ": 2.1}).holds
    cell["methods"]["SeqIL-MQ"] = found(0.88)
    assert depth_shown._reached("cell", cell, seconds).here == "none"


def test_every_method_has_the_grid_of_its_optimizer():
    standard, mupc = (Cell("residual", name, 4, 32) for name in ("standard", "muPC"))
    for cell in (standard, mupc):
        for method in methods(cell):
            found = np.array(rates(cell, method))
            np.testing.assert_allclose(found / found[2], [0.1, 0.3, 1, 3, 10])
    assert len(methods(standard)) > len(methods(mupc)) > 1


def test_the_batch_of_a_cell_is_that_of_its_training(tmp_path):
    cell = Cell("residual", "standard", 4, 32, 16)
    found = settings("mlp", "digits")
    assert sized(found, cell).batch_size == 16
    assert (
        sized(found, dataclasses.replace(cell, batch=None)).batch_size
        == found.batch_size
    )
    assert cell.name == "residual-standard-4x32-by-16"
    row = {"choice": {"test": [0.9], "point": 1}, "rates": [0.1, 0.2, 0.3]}
    both = dict.fromkeys(depth_shown.FEW, row)
    batches = {cell.name: {"batch": 16, "methods": both}}
    claims = depth_shown.claims({"cells": {}, "batches": batches})
    assert [claim.here for claim in claims] == ["90.00 (rate 0.2)"] * 2
    half = {"batch": 64, "methods": {"BP-Adam": row}}  # the other is not finished
    plots._batches([*batches.values(), half], tmp_path / "batches.png")
    assert (tmp_path / "batches.png").read_bytes().startswith(PNG)


def test_what_the_equilibrium_is_beside_backprop_is_shown_by_width(tmp_path):
    def cell(width, lowest):
        like = {"to_backprop": {"equilibrium": {"cosine": [lowest, 0.9]}}}
        seen = {"BP-Adam": {"gradients": {"fresh": like, "trained": like}}}
        return {"width": width, "depth": 4, "parametrisation": "muPC", "methods": seen}

    cells = {f"net-{width}": cell(width, width / 100) for width in (16, 64)}
    found = depth_shown.claims({"cells": {}, "transfer": cells})
    assert [c.here for c in found] == [
        "0.160 to 0.900; 0.160 to 0.900",
        "0.640 to 0.900; 0.640 to 0.900",
    ]
    plots._widths(list(cells.values()), tmp_path / "widths.png")
    assert (tmp_path / "widths.png").read_bytes().startswith(PNG)
