"""Random flips and crops: what they may give, how often, and by which key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from pcjax import training
from tests import problems

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
COPIES = 1200  # of one image


def tally(augment, image, choices, repeats=COPIES):
    """How often each of the choices comes out; everything must be one of them."""
    many = jnp.asarray(np.stack([image] * repeats))
    found = np.asarray(jax.jit(augment)(jax.random.key(3), many))
    same = np.array([[np.array_equal(x, c) for c in choices] for x in found])
    assert np.all(same.sum(1) == 1)
    return same.sum(0)


def assert_uniform(counts):
    """Within five standard deviations of a binomial."""
    total, share = counts.sum(), 1 / len(counts)
    deviation = np.sqrt(total * share * (1 - share))
    np.testing.assert_allclose(counts, total * share, atol=5 * deviation)


def test_half_of_the_images_are_mirrored():
    image = IMAGES[0]
    assert_uniform(tally(training.random_flip, image, [image, image[:, ::-1]]))


def test_crops_take_every_offset_alike():
    image = IMAGES[0]
    parts = [image[i : i + 3, j : j + 2] for i in range(3) for j in range(3)]
    assert_uniform(tally(training.random_crop(3, 2), image, parts))
    frame = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    moved = [frame[i : i + 5, j : j + 4] for i in range(3) for j in range(3)]
    assert_uniform(tally(training.padded_crop(1), image, moved))


def test_without_a_key_evaluation_sees_what_is_there():
    images = jnp.asarray(IMAGES)
    for augment in (training.random_flip, training.padded_crop(2)):
        np.testing.assert_array_equal(augment(None, images), IMAGES)
    middle = training.random_crop(3, 2)(None, images)
    np.testing.assert_array_equal(middle, IMAGES[:, 1:4, 1:3])
    low = training.random_crop(2, 3)(None, images)
    np.testing.assert_array_equal(low, IMAGES[:, 1:3, :3])


def test_the_key_reaches_a_prepare_inside():
    inner = training.augmented(training.classification(3), training.random_flip)
    outer = training.augmented(inner, training.padded_crop(1))
    labels = np.arange(6) % 3

    @jax.jit
    def both(images, key):
        first, last = jax.random.split(key)
        cropped = training.padded_crop(1)(first, images)
        want, _ = inner(cropped, labels, key=last)
        still = [prepare(images, labels)[0] for prepare in (outer, inner)]
        return outer(images, labels, key=key)[0], want, still

    found, want, still = both(IMAGES, jax.random.key(3))
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(*still)


def test_channels_are_normalised_after_scaling(x64):
    prepare = training.classification(3, low=-1.0, dtype=jnp.float64)
    mean, deviation = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    both = jax.jit(training.normalised(prepare, mean, deviation))
    inputs, targets = both(IMAGES, np.arange(6) % 3)
    want = (IMAGES * (2 / 255) - 1 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(inputs, want, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(targets, np.eye(3)[np.arange(6) % 3])


def recorder():
    """An epoch whose weights become the batches that it saw, and their labels."""
    prepare = training.augmented(
        training.classification(6, high=255.0),
        training.random_flip,
        training.padded_crop(1),
    )
    prepare = training.normalised(prepare, [0] * 3, [1] * 3)  # hands the key on

    def update(params, opt_state, inputs, targets):
        (seen, labels), step = params, opt_state
        info = pcjax.Info(*(jnp.zeros(1) for _ in range(4)))
        seen, labels = seen.at[step].set(inputs), labels.at[step].set(targets)
        return (seen, labels), step + 1, (jnp.zeros(()), info)

    return training.make_epoch(update, prepare, 2)


def start(key):
    params = jnp.zeros((3, 2, *IMAGES.shape[1:])), jnp.zeros((3, 2, 6))
    return training.TrainState(params, jnp.zeros((), jnp.int32), key, jnp.int32(0))


def two_epochs(run, state):
    """What each of two epochs saw, the first from the start."""
    data = training.device_data(IMAGES, np.arange(6), 6)
    first, _ = run(state, data)
    second, _ = run(first._replace(opt_state=state.opt_state), data)
    return jax.tree.map(np.asarray, (first.params, second.params))


@pytest.mark.exhaustive
def test_seeds_side_by_side_see_what_they_see_alone():
    keys = jax.random.split(jax.random.key(5), 2)
    run = jax.jit(jax.vmap(recorder(), in_axes=(0, None)))
    states = jax.vmap(start)(keys)
    found = two_epochs(run, states)
    problems.assert_trees_close(found, two_epochs(run, states), 0, 0)
    alone = two_epochs(jax.jit(recorder()), start(keys[1]))
    problems.assert_trees_close(jax.tree.map(lambda x: x[1], found), alone, 0, 0)


def test_the_same_key_and_epoch_give_the_same_bits_and_others_do_not():
    run = jax.jit(recorder())
    states = [start(key) for key in jax.random.split(jax.random.key(5), 2)]
    rows = [two_epochs(run, state) for state in states]
    problems.assert_trees_close(rows[1], two_epochs(run, states[1]), 0, 0)
    found = jax.tree.map(lambda *x: np.stack(x), *rows)
    differ = []
    for seed, (seen, labels) in ((s, p) for s in range(2) for p in found):
        order = labels[seed].argmax(-1).ravel()
        assert sorted(order) == list(range(6))
        # By image number, what each was made: another thing in every epoch and seed.
        differ.append(seen[seed].reshape(6, *IMAGES.shape[1:])[np.argsort(order)])
        for number, image in enumerate(differ[-1]):
            # First mirrored or not, then moved.
            versions = IMAGES[number], IMAGES[number][:, ::-1]
            frames = [np.pad(v, ((1, 1), (1, 1), (0, 0))) for v in versions]
            places = [
                frame[i : i + 5, j : j + 4]
                for frame in frames
                for i, j in np.ndindex(3, 3)
            ]
            assert any(np.array_equal(np.round(image), place) for place in places)
    for one in range(4):
        for other in range(one):
            same = [
                np.array_equal(*p) for p in zip(differ[one], differ[other], strict=True)
            ]
            assert sum(same) < 4


def test_evaluation_and_training_without_augmentation_get_no_key():
    def prepare(images, labels):
        return training.classification(6)(images, labels)

    def update(params, opt_state, inputs, targets):
        info = pcjax.Info(*(jnp.zeros(1) for _ in range(4)))
        return params, opt_state, (jnp.sum(inputs), info)

    case = problems.dense_case((60, 6))
    data = training.device_data(IMAGES, np.arange(6), 6)
    state = training.TrainState(case.params, (), jax.random.key(0), jnp.int32(0))
    jax.jit(training.make_epoch(update, prepare, 2))(state, data)
    both = training.augmented(prepare, training.random_flip)
    measure = pcjax.evaluation.classification_measures(pcjax.softmax)
    found = [
        pcjax.evaluation.make_evaluation(case.network, p, measure)(state.params, data)
        for p in (prepare, both)
    ]
    problems.assert_trees_close(*found)


def test_what_is_no_augmentation_is_refused():
    with pytest.raises(TypeError, match="augmented: every argument must be a function"):
        training.augmented(training.classification(3), 4)
    with pytest.raises(ValueError, match="padded_crop: padding"):
        training.padded_crop(0)
    with pytest.raises(ValueError, match="random_crop: width"):
        training.random_crop(3, 0)
    with pytest.raises(ValueError, match="hold no part of 6 x 2"):
        training.random_crop(6, 2)(None, jnp.asarray(IMAGES))
    for mean, deviation in (([0, 0], [1]), ([0.0], [0.0]), (0.5, 1.0)):
        with pytest.raises(ValueError, match="normalised: expected as many"):
            training.normalised(training.classification(3), mean, deviation)
    prepare = training.normalised(training.classification(3), [0.0] * 2, [1.0] * 2)
    with pytest.raises(ValueError, match="2 means for inputs of shape"):
        prepare(jnp.asarray(IMAGES), jnp.zeros(6, jnp.int32))


def test_every_augmentation_has_a_key_of_its_own():
    drawn = []

    def draw(key, images):
        drawn.append(np.asarray(jax.random.key_data(key)))
        return images

    key = jax.random.key(0)
    prepare = training.augmented(training.classification(6), draw, draw)
    prepare(jnp.asarray(IMAGES), jnp.arange(6), key=key)
    assert not np.array_equal(*drawn)
    # Nor are they those that shuffle, which `jax.random.permutation` splits.
    steps = 4
    shuffling = jax.random.split(jax.random.fold_in(key, 2), steps)
    preparing = training.batch_keys(key, 2, steps)
    both = jax.random.key_data(jnp.concatenate([shuffling, preparing]))
    assert len(np.unique(both, axis=0)) == 2 * steps
