"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_runs_in_order_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what the blocks write
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    labels = jnp.arange(40) % 10
    images = jax.random.uniform(jax.random.key(1), (10, 64))[labels]
    names = {"images": images, "targets": jax.nn.one_hot(labels, 10)}
    names |= {
        "pixels": np.asarray(255 * images).astype(np.uint8),
        "labels": np.asarray(labels),
    }
    exec(blocks[0], names)
    params, opt_state = names["params"], names["tx"].init(names["params"])
    losses = []
    for _ in range(150):
        params, opt_state, loss = names["train_step"](
            params, opt_state, names["images"], names["targets"]
        )
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    for block in blocks[1:]:
        exec(block, names)
    assert names["metrics"].loss.shape == (5, 1)
    assert names["state"].epoch.tolist() == [2] * 5  # before and after the checkpoint
    inputs = jnp.ones((2, 64))
    own = names["network"].init(jax.random.key(0), inputs)
    assert names["network"].apply(own, inputs).shape == (2, 10)
    assert all(np.shape(e) == (4,) for e in names["inference"].trace)


def test_the_example_has_twelve_lines_or_so():
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 15
