"""The README's Python runs as it stands, and gives what the README says."""

import re
from pathlib import Path

import jax
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_pasted_example_prints_the_accuracy_of_the_readme(capsys):
    names = {}
    exec(BLOCKS[0], names)
    printed = re.fullmatch(r"test accuracy: ([\d.]+)%\n", capsys.readouterr().out)
    assert printed, "the example prints its accuracy, and nothing else"
    said = re.search(r"It prints ([\d.]+) %", README)
    # Of 389 images; other machines round otherwise.
    assert abs(float(printed[1]) - float(said[1])) < 1.5
    # What it says in its own words, without pcjax.
    logits = np.asarray(names["images"][1408:])
    for index, layer in enumerate(jax.device_get(names["params"])):
        logits = np.maximum(logits, 0) if index else logits
        logits = logits @ layer["kernel"] + layer["bias"]
    right = np.mean(logits.argmax(axis=1) == np.asarray(names["labels"][1408:]))
    assert abs(float(printed[1]) - 100 * right) < 0.3


def test_mq_alone_runs_on_the_weights_of_the_example():
    (_, alone) = BLOCKS
    import pcjax

    params = pcjax.mlp([3, 4, 2]).init(jax.random.key(0), jax.numpy.ones((1, 3)))
    names = {"pcjax": pcjax, "params": params}
    exec(alone, names)
    assert names["opt_state"][0].v.shape == (2,)
    # And its caveat: the first update is a gradient step of rate about 1.
    updates, _ = names["tx"].update(params, names["opt_state"], params)
    ratios = jax.tree.map(lambda u, g: np.asarray(-u / g), updates, params)
    assert all(np.allclose(r, 1, atol=0.02) for r in jax.tree.leaves(ratios))


def test_the_readme_fits_on_two_screens():
    assert len(README.splitlines()) <= 120
