"""Rank-one updates against explicit ones, image by image; the experiment end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from experiments.common import methods
from experiments.common.harness import Run
from experiments.common.settings import settings
from experiments.common.tasks import Task
from experiments.proximal_objective import experiment as proximal_objective
from experiments.proximal_objective import methods as proximal_methods
from experiments.proximal_objective.experiment import (
    BETAS,
    Config,
    along_inference,
    summary,
)
from experiments.proximal_objective.rank_one import (
    normalised_steps,
    optimizer_steps,
    own_updates,
)
from pcjax import training
from pcjax.theory.proximal import proximal_objective as objective
from pcjax.training import evaluation
from tests.problems import Case, clamped, dense_case, descend, iterate, make
from tests.tiers import thorough

IMAGES, CLASSES, CHUNK = 7, 4, 3  # the last chunk is not full
SCHEDULES = {
    "simultaneous": lambda t: 0.3,
    "sequential": lambda t: 0.4 / (1 + t),
}
KINDS = {"simultaneous": pcjax.simultaneous, "sequential": pcjax.sequential}
STEPS = 3


def small_task():
    """Two hidden ReLU layers on random images, in float64."""
    rng = np.random.default_rng(1)
    network = pcjax.mlp([12, 9, 7, CLASSES])
    images = training.Data(
        jnp.asarray(rng.integers(0, 256, (IMAGES, 2, 2, 3)), jnp.uint8),
        jnp.asarray(rng.integers(0, CLASSES, IMAGES), jnp.int32),
    )
    prepare = training.classification(CLASSES, low=-1.0, dtype=jnp.float64)
    measure = evaluation.classification_measures(pcjax.softmax)
    case = make(network, (2, 2, 3), dtype=jnp.float64)
    params = jax.tree.map(lambda x: 1.5 * x, case.params)
    return Task(network, pcjax.softmax, prepare, measure, images, images), params


def sgd(network, params):
    """The rule of plain gradient steps, and what it must be, by layer and activity."""
    tx = optax.sgd(0.7)
    return optimizer_steps(tx, tx.init(params), params), lambda layer, signal: 0.7


def mq(network, params):
    """MQ after two iterations; the step sizes by eq. 7."""
    tx = pcjax.mq(2e-2, decay=0.9, min_step=1e-2, eps=1e-3)
    state = tx.init(params)
    for factor in (0.01, 0.2):
        gradients = jax.tree.map(lambda x, f=factor: f * x, params)
        _, state = tx.update(gradients, state, params)
    v = np.asarray(state[0].v)
    assert np.ptp(v) > 0.001  # the layers differ
    rule = optimizer_steps(tx, state, params)
    return rule, lambda layer, signal: 2e-2 / (v[layer] + 1e-3) + 1e-2


def normalised(network, params):
    """Each image's own `1 / (||f(h_l)||^2 + 1)`."""
    return normalised_steps(network), lambda layer, signal: 1 / (1 + signal @ signal)


def explicit(task, params, raw, kind, step_size):
    """Of one image, its weights really updated: Prox [betas, T+1] and energy [T+1]."""
    case = Case(task.network, params, *task.prepare(*raw))

    def move(t):
        return lambda layer, slope, h: -SCHEDULES[kind](t) * slope

    def loss(theta):
        logits = task.network.apply(theta, case.inputs)
        return -jnp.sum(case.targets * jax.nn.log_softmax(logits))

    found, energies = [], []
    hidden = pcjax.feedforward(task.network, params, case.inputs)[:-1]
    for t in range(STEPS + 1):
        activities = clamped(case, hidden, task.output, pcjax.full_clamp)
        hidden = iterate(case, kind, hidden, move(t), task.output)
        grads = pcjax.local_gradients(
            task.network, params, activities, output=task.output
        )
        update = []
        for index, (layer, grad) in enumerate(
            zip(task.network.layers, grads, strict=True)
        ):
            signal = jnp.ravel(layer.activation(activities[index]))
            step = step_size(index, signal)
            update.append(jax.tree.map(lambda g, a=step: -a * g, grad))
        found.append([objective(loss, params, tuple(update), beta) for beta in BETAS])
        # That before the update.
        energy = pcjax.free_energy(task.network, params, activities, output=task.output)
        energies.append(energy[0])
    return jnp.array(found).T, jnp.stack(energies)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (mq, "simultaneous"),
        (normalised, "sequential"),
        *thorough(
            [
                (mq, "sequential"),
                (normalised, "simultaneous"),
                (sgd, "sequential"),
                (sgd, "simultaneous"),
            ]
        ),
    ],
)
def test_agrees_with_really_updating_the_weights(x64, monkeypatch, rule, kind):
    monkeypatch.setattr(proximal_objective, "CHUNK", CHUNK)
    task, params = small_task()
    steps, expected_steps = rule(task.network, params)
    method = KINDS[kind](STEPS, SCHEDULES[kind])

    @jax.jit
    def measure(images):
        return along_inference(task, method, params, steps, images)

    found = jax.tree.map(np.asarray, measure(task.train))
    assert found.loss.shape == found.energy.shape == (STEPS + 1, IMAGES)
    assert found.squared_norms.shape == (STEPS + 1, 3, IMAGES)

    @jax.jit
    def really(raw):
        return explicit(task, params, raw, kind, expected_steps)

    rows = [
        really(jax.tree.map(lambda x, n=image: x[n, None], task.train))
        for image in range(IMAGES)
    ]
    # [betas, T+1, N] and [T+1, N]
    expected, energy = (np.stack(row, -1) for row in zip(*rows, strict=True))
    np.testing.assert_allclose(found.energy, energy, rtol=1e-9)
    for beta, want in zip(BETAS, expected, strict=True):
        have = found.loss + found.squared_norms.sum(1) / (2 * beta)
        np.testing.assert_allclose(have, want, rtol=1e-9)
    averaged = summary(found, BETAS)
    np.testing.assert_allclose(averaged["objective"], expected.mean(-1), rtol=1e-9)
    falls = (expected[:, -1] < expected[:, 0]).mean(-1)
    np.testing.assert_array_equal(averaged["falls"], falls)


def test_the_authors_normalised_training_step(x64):
    """Layer l's mean gradient is divided by the batch mean of `||f(h_l)||^2 + 1`."""
    case = dense_case(batch=6, activation=jax.nn.relu, dtype=jnp.float64)
    found = settings("mlp", "digits")
    found = dataclasses.replace(found, il_num_steps=2, il_step_size=0.3)
    recipe = methods.NORMALISED.rule(found, found.il_step_size)
    update = recipe.update(case.network, pcjax.softmax, optax.sgd(0.5))
    opt_state = optax.sgd(0.5).init(case.params)
    updated, _, _ = jax.jit(update)(case.params, opt_state, case.inputs, case.targets)
    moves = [lambda layer, slope, h: -0.3 * slope] * 2

    @jax.jit
    def by_hand():
        activities = descend(
            case, "simultaneous", moves, clamp=pcjax.soft_clamp(found.clamp)
        )
        grads = pcjax.local_gradients(
            case.network, case.params, activities, output=pcjax.softmax
        )
        layers = zip(case.network.layers, activities, strict=False)
        return grads, [layer.activation(h) for layer, h in layers]

    grads, signals = by_hand()
    for index, signal in enumerate(signals):
        norms = 1 + np.sum(np.asarray(signal) ** 2, 1)
        for name in ("kernel", "bias"):
            want = case.params[index][name] - 0.5 * grads[index][name] / norms.mean()
            np.testing.assert_allclose(updated[index][name], want, rtol=1e-9)


def test_training_takes_every_image_of_an_epoch_once(x64):
    """A rule that notes its batches: more than two epochs of 3 batches of 2."""
    task, _ = small_task()
    task = task._replace(
        network=pcjax.mlp([12, CLASSES]),  # its weights stand still
        train=task.train._replace(labels=jnp.arange(IMAGES, dtype=jnp.int32)),
        prepare=lambda images, labels: (images.astype(float), labels),
    )

    class Notes(methods.Recipe):
        def update(self, network, output, tx):
            def update(params, opt_state, inputs, labels):
                count, seen = opt_state
                return params, (count + 1, seen.at[count].set(labels)), None

            return update

    def optimizer(rate, settings):
        def init(params):
            return jnp.zeros((), jnp.int32), jnp.full((10, 2), -1, jnp.int32)

        return optax.GradientTransformation(init, lambda *_: None)

    method = proximal_methods.KINDS["IL"].method
    kind = proximal_methods.KINDS["IL"]._replace(
        method=method._replace(rule=lambda *_: Notes(None), optimizer=optimizer)
    )
    found = dataclasses.replace(settings("mlp", "digits"), batch_size=2)
    _, (count, seen) = proximal_methods.trainer(kind, task, found, 7)(jax.random.key(0))
    assert count == 7
    epochs = np.asarray(seen[:6]).reshape(2, 6)
    assert (seen[:7] >= 0).all()
    assert all(len(set(epoch)) == 6 for epoch in epochs.tolist())
    assert (epochs[0] != epochs[1]).any()


@pytest.fixture(scope="module", params=["small", *thorough(["whole"])])
def finished(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("proximal_objective")
    config = Config(preset="smoke", seeds=2, methods=("IL", "SeqIL-MQ"), out=out)
    figure_settings = proximal_objective.figure_settings

    def small(dataset):
        return dataclasses.replace(figure_settings(dataset), hidden=(16, 16))

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small":
            patch.setattr(proximal_objective, "figure_settings", small)
        proximal_objective.main(config)
        yield out, json.loads((out / "results.json").read_text())


def test_what_the_experiment_writes(finished):
    out, found = finished
    results = found["results"]
    assert list(results["methods"]) == ["IL", "SeqIL-MQ"]
    for (name, rows), count in zip(results["methods"].items(), (21, 6), strict=True):
        arrays = {key: np.array(value) for key, value in rows.items()}
        assert arrays["loss"].shape == arrays["energy"].shape == (count, 2), name
        for beta, values in zip(BETAS, arrays["objective"], strict=True):
            whole = arrays["loss"] + arrays["squared_norms"].sum(1) / (2 * beta)
            np.testing.assert_allclose(values, whole, rtol=1e-9)
        # At the start only the output is in error, and only the last layer moves.
        assert (arrays["squared_norms"][0, :-1] < 1e-6).all()
        assert (arrays["squared_norms"][0, -1] > 1e-3).all()
        assert (np.diff(arrays["energy"], axis=0) < 0).all()
        # The issue: with a large beta the objective falls all along inference.
        assert (np.diff(arrays["objective"][-1], axis=0) < 0).all()
    for figure in ("change", "figure1", "figure8"):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    seconds = json.loads((out / "run.json").read_text())["seconds_by_part"]
    assert seconds["IL-0, by step"]["measurement"] > 0


def test_the_first_seed_is_the_same_however_many_there_are(finished, tmp_path):
    config = Config(preset="smoke", seeds=1, methods=("SeqIL-MQ",))
    size = dataclasses.replace(proximal_objective.EXPERIMENT.sizes["smoke"], seeds=1)
    alone = proximal_objective.measure(config, size, Run(tmp_path, {}))
    both = finished[1]["results"]["methods"]["SeqIL-MQ"]
    for key, values in alone["methods"]["SeqIL-MQ"].items():
        # Two programs, whose sums XLA may take in another order.
        np.testing.assert_allclose(
            values[..., 0], np.array(both[key])[..., 0], rtol=1e-5
        )


def test_claims_follow_the_numbers():
    """Two seeds; loss and squared norm, and so the betas that fall, by hand."""
    loss = np.array([[3.0, 3.0], [2.0, 1.0]])
    norms = np.array([[[1.0, 1.0]], [[3.0, 3.0]]])  # [T+1, L, seeds]
    betas = [0.5, 1, 100]
    objective = [loss + norms[:, 0] / (2 * beta) for beta in betas]
    found = {
        "loss": loss,
        "squared_norms": norms,
        "objective": objective,
        "falls": [[0, 0.5], [0.25, 0.75], [1, 1]],
    }
    rows = proximal_objective.claims({"betas": betas, "methods": {"SeqIL": found}})
    mixed, tie, large, balance = rows
    # beta = 1/2: 4 and 4 become 5 and 4; beta = 1: 3.5 and 3.5 become 3.5 and 2.5.
    assert mixed.here.startswith("rises: 4.000 ± 0.000 to 4.500 ± 0.707 (+12.5 %)")
    assert "lowest at t = 0; falls for 25 % of the images" in mixed.here
    assert tie.here.startswith("mixed")
    assert "lowest" not in tie.here
    # What is judged has its interval: here of -1 and 0, whose mean has Student's t.
    half = 12.7062 / 2
    assert f"; -0.500, 95 % interval {-0.5 - half:+.3f} to {-0.5 + half:+.3f}" in (
        tie.here
    )
    assert "interval" not in mixed.here
    # Two seeds decide nothing.
    assert [row.holds for row in rows] == [None, "undecided", "undecided", None]
    assert [row.paper for row in rows[1:3]] == ["falls (A.5)", "falls (Figures 1, 8)"]
    assert large.here.startswith("falls")
    assert balance.here.startswith("beta > 0.67: loss 3 to 1.5, squared norm 1 to 3")


def test_layers_that_are_not_dense_are_refused():
    case = make(pcjax.convnet(4, features=(3,), kernel_sizes=(3,)), (9, 9, 2))
    targets = case.targets
    found = pcjax.infer(
        case.network, pcjax.sequential(1, 0.1), case.params, case.inputs, targets
    )
    with pytest.raises(ValueError, match=r"dense layers.*of layer 0.*\(3, 3, 2, 3\)"):
        own_updates(case.network, case.params, found.state, [1.0, 1.0])


def test_steps_of_a_wrong_number_are_refused():
    case = dense_case()
    method = pcjax.sequential(1, 0.1)
    found = pcjax.infer(case.network, method, case.params, case.inputs, case.targets)
    with pytest.raises(ValueError, match="4 params and steps, got 4 and 3"):
        own_updates(case.network, case.params, found.state, [1.0] * 3)


@pytest.mark.parametrize("betas", [(), (0.0,), (1.0, -1.0), (float("nan"),)])
def test_betas_that_are_not_positive_are_refused(betas):
    with pytest.raises(ValueError, match="--betas must be one or more positive"):
        Config(betas=betas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("IL", "BP")}, "expected one or more methods of.*'BP'"),
        ({"methods": ()}, "expected one or more methods of.*got none"),
        ({"dataset": "tiny_imagenet"}, "no settings of the net 'mlp'"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        proximal_objective.main(Config(out=tmp_path, **options))
