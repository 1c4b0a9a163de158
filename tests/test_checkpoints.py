"""Checkpoints: what comes back, and what happens when something breaks."""

import concurrent.futures
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import pcjax
from pcjax import training
from pcjax.checkpoints import storage
from pcjax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
)
from tests.problems import compilations
from tests.tiers import thorough

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
OPTIMIZERS = {"adam": lambda: optax.adam(1e-2), "mq": lambda: pcjax.mq(1e-2)}


def _state(step):
    """A small state that says from which step it is."""
    return {
        "weights": jnp.arange(60, dtype=jnp.float32).reshape(6, 10) * step,
        "key": jax.random.key(step),
        "step": jnp.int32(step),
    }


def _bits(leaf):
    """Type, dtype, shape and bytes: equal only if the leaf is the same to the bit."""
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return type(leaf), str(leaf.dtype), leaf.shape, data.tobytes()


def _assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert _bits(a) == _bits(b)


def _save(folder, steps=(1, 2), **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step), {"loss": 0.1 * step})


def _steps(folder):
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _assert_falls_back(folder, damaged, good):
    """Restoring passes over one checkpoint, says so, and gives the other."""
    with (
        Checkpoints(folder) as checkpoints,
        pytest.warns(CheckpointWarning, match=f"step {damaged}: ") as warned,
    ):
        restored = checkpoints.restore(_state(0))
    assert restored.step == good
    assert restored.record == {"loss": 0.1 * good}
    _assert_same(restored.state, _state(good))
    assert len(restored.skipped) == len(warned) == 1
    assert restored.skipped[0] in str(warned[0].message)
    return restored.skipped[0]


def _python(code, *arguments, **options):
    """Runs a script in another process, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | options.pop("env", {})
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, **options
    )


def _output(code, *arguments, **options):
    process = _python(code, *arguments, stderr=subprocess.PIPE, **options)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors == ""
    return output


# What comes back


@pytest.mark.parametrize(
    ("optimizer", "seeds"), [("adam", 3), *thorough([("mq", None)])]
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, optimizer, seeds):
    network, tx = pcjax.mlp([6, 8, 4]), OPTIMIZERS[optimizer]()
    grad_fn = pcjax.value_and_grad(
        network, pcjax.sequential(2, 0.1), output=pcjax.softmax
    )
    data = training.device_data(
        RANDOM.integers(0, 256, (40, 6), dtype=np.uint8), RANDOM.integers(0, 4, 40), 4
    )
    update = training.make_update(grad_fn, tx)
    epoch = training.make_epoch(update, training.classification(4), 8)

    def init(key):
        return training.init_state(network, tx, key, jnp.ones((1, 6)))

    key = jax.random.key(1)
    if seeds:
        init, epoch = jax.vmap(init), jax.vmap(epoch, in_axes=(0, None))
        key = jax.random.split(key, seeds)
    epoch = jax.jit(epoch, donate_argnums=0)
    whole = init(key)
    for _ in range(4):
        whole, _ = epoch(whole, data)

    state = init(key)
    with Checkpoints(tmp_path) as checkpoints:
        for number in (1, 2):
            state, _ = epoch(state, data)
            checkpoints.save(number, state)
        # Not waited for: its buffers are given away while the thread may still write.
        state, _ = epoch(state, data)
    with Checkpoints(tmp_path) as checkpoints:
        resumed = checkpoints.restore(jax.tree.map(jnp.copy, init(key))).state
    for _ in range(2):
        resumed, _ = epoch(resumed, data)
    _assert_same(resumed, whole)


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path, x64):
    bits16 = RANDOM.integers(0, 2**16, 32, dtype=np.uint16)
    tree = {
        "bfloat16": jnp.asarray(bits16.view(jnp.bfloat16)),
        "float16": bits16.view(np.float16),
        "float32": jnp.asarray([np.nan, -np.inf, -0.0, 1e-45], jnp.float32),
        "float64": jnp.asarray(RANDOM.normal(size=(2, 3, 4))),
        "complex": RANDOM.normal(size=3) + 1j,
        "int64": jnp.asarray([-(2**63), 2**63 - 1]),
        "bool": jnp.asarray([[True, False]]),
        "int4": jnp.asarray([-8, 7], jnp.int4),
        "float8": jnp.asarray([1.5], jnp.float8_e4m3fn),
        "scalars": (jnp.float32(0.1), np.float64(0.1), np.array(3, np.int8)),
        "keys": jax.random.split(jax.random.key(3), (2, 3)),
        "rbg": jax.random.key(4, impl="rbg"),
        "empty": (jnp.zeros((0, 3)), np.zeros(0, np.int8)),
        "no keys": jax.random.split(jax.random.key(5), 0),
        "transposed": np.asfortranarray(RANDOM.normal(size=(3, 4))),
        "swapped": np.arange(3, dtype=">f4"),
        "none": None,
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        restored = checkpoints.restore(tree)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree["keys"]
        )
        _assert_same(checkpoints.restore(tree | {"keys": shapes}).state, tree)
    _assert_same(restored.state, tree)
    assert (restored.step, restored.record, restored.skipped) == (0, None, ())


@pytest.mark.parametrize("shape", [(), (2,)])
def test_weak_types_and_placement_are_kept(tmp_path, shape):
    # Otherwise the resumed run would promote differently, or compile once more.
    template = {
        "weak": jnp.broadcast_to(jnp.asarray(0.5), shape),
        "strong": jnp.full(shape, 0.5, jnp.float32),
    }
    compiled = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree))
    with compilations(1):
        compiled(template)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, template)
        state = checkpoints.restore(template).state
    assert state["weak"].weak_type
    assert not state["strong"].weak_type
    with compilations(0):
        compiled(state)


def test_floats_of_the_record_come_back_to_the_bit(tmp_path):
    bits = RANDOM.integers(0, 2**64, 500, dtype=np.uint64)
    floats = [x for x in bits.view(np.float64).tolist() if x == x]
    floats += [-0.0, 5e-324, float("inf"), float("-inf"), 0.1, float(np.float32(0.1))]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {}, {"history": [floats, {"text": "µ \u2028", "n": 2**70}]})
        restored, other = checkpoints.restore({}).record["history"]
    assert [struct.pack("d", x) for x in restored] == [
        struct.pack("d", x) for x in floats
    ]
    assert other == {"text": "µ \u2028", "n": 2**70}


def test_sharded_arrays_come_back_sharded(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from pcjax.checkpoints.checkpoints import Checkpoints
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
        rows = NamedSharding(mesh, PartitionSpec("x"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        tree = {
            "rows": jax.device_put(jnp.arange(24.0).reshape(8, 3), rows),
            "keys": jax.device_put(jax.random.split(jax.random.key(0), 8), rows),
            "copies": jax.device_put(jnp.arange(3), everywhere),
            "weak": jax.device_put(jnp.asarray(2.0), everywhere),
            "third": jax.device_put(jnp.arange(3), jax.devices()[2]),
            "plain": jnp.arange(3),
        }
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(0, tree)
            state = checkpoints.restore(tree).state
            alone = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), tree)
            gathered = checkpoints.restore(alone).state
        for name, leaf in state.items():
            assert leaf.sharding == tree[name].sharding, name
            assert leaf.weak_type if name == "weak" else True
            for got in (leaf, gathered[name]):
                if name == "keys":
                    got, leaf = (jax.random.key_data(k) for k in (got, leaf))
                wanted = jax.random.key_data(alone["keys"]) if name == "keys" \\
                    else alone[name]
                assert np.array_equal(got, wanted), name
        assert len(gathered["rows"].devices()) == 1
        print(len(state["rows"].addressable_shards))
    """
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    )
    assert _output(code, str(tmp_path), env={"XLA_FLAGS": flags}) == "4\n"


# When it is written


def test_saving_neither_waits_nor_sees_what_happens_to_the_state_later(
    tmp_path, monkeypatch
):
    go, write = threading.Event(), storage.write

    def late(*args):
        assert go.wait(60)
        write(*args)

    monkeypatch.setattr(storage, "write", late)
    expected = np.arange(1000.0, dtype=np.float32)
    state = {"jax": jnp.arange(1000.0), "numpy": expected.copy()}
    record = [1]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, record)
        # Here nothing is written yet.
        assert _steps(tmp_path) == []
        state["jax"] = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(state["jax"])
        state["jax"].block_until_ready()
        state["numpy"][:] = -1
        record.append(2)
        go.set()
        restored = checkpoints.restore(state)
    np.testing.assert_array_equal(restored.state["jax"], expected)
    np.testing.assert_array_equal(restored.state["numpy"], expected)
    assert restored.record == [1]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_k_are_kept(tmp_path, keep):
    _save(tmp_path, range(1, 6), keep=keep)
    assert _steps(tmp_path) == list(range(6 - keep, 6))
    assert {path.name for path in tmp_path.iterdir()} == {".lock"} | {
        str(step) for step in range(6 - keep, 6)
    }
    for step in range(5, 5 - keep, -1):
        with Checkpoints(tmp_path) as checkpoints:
            _assert_same(checkpoints.restore(_state(0)).state, _state(step))
        shutil.rmtree(tmp_path / str(step))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0)) is None


def test_orbax_itself_can_read_them(tmp_path):
    _save(tmp_path)
    with ocp.CheckpointManager(tmp_path) as manager:
        assert list(manager.all_steps()) == [1, 2]
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(), manifest=ocp.args.JsonRestore()
        )
        read = manager.restore(2, args=args)
    # Leaves are numbered in the order of the manifest's list of them.
    leaves = json.loads(read["manifest"]["text"])["leaves"]
    number = [path for path, *_ in leaves].index("['weights']")
    np.testing.assert_array_equal(read["state"][str(number)], _state(2)["weights"])


def test_it_is_quiet_leaves_no_thread_and_does_not_slow_the_import(tmp_path):
    code = """
        import sys, threading, numpy as np, pcjax
        print("orbax" in sys.modules, "pcjax.checkpoints" in sys.modules)
        from pcjax.checkpoints.checkpoints import Checkpoints
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.restore({})
            for step in range(3):
                checkpoints.save(step, {"x": np.ones(3)})
            checkpoints.restore({"x": np.ones(3)})
        print([thread.name for thread in threading.enumerate()])
    """
    assert _output(code, str(tmp_path)) == "False False\n['MainThread']\n"


@pytest.mark.faults
def test_several_runs_of_a_process_save_at_once(tmp_path, faults):
    def save(folder):
        with Checkpoints(folder) as checkpoints:
            for step in range(1, 16 if faults.all else 5):
                checkpoints.save(step, _state(step))

    folders = [tmp_path / str(index) for index in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(save, folders))
    for folder in folders:
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(_state(0))
        assert restored.step == (15 if faults.all else 4)
        _assert_same(restored.state, _state(restored.step))


# Checkpoints of something else


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": jnp.zeros((6, 11))}, "float32 [6, 10], expected float32 [6, 11]"),
        (
            {"weights": jnp.zeros((6, 10), jnp.bfloat16)},
            "float32 [6, 10], expected bfloat16 [6, 10]",
        ),
        (
            {"key": jax.random.key(0, impl="rbg")},
            "holds key<fry> [], expected key<rbg> []",
        ),
        ({"key": np.zeros(2, np.uint32)}, "key<fry> [], expected uint32 [2]"),
        ({"more": jnp.zeros(3)}, "['more'] holds nothing, expected float32 [3]"),
        ({"step": None}, "['step'] holds int32 [], expected nothing"),
    ],
)
def test_another_state_is_refused(tmp_path, change, words):
    _save(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoint 2 .* another") as error:
            checkpoints.restore(_state(0) | change)
        assert words in str(error.value)
        assert checkpoints.restore(_state(0)).step == 2


def test_another_optimizer_is_refused(tmp_path):
    params = {"w": jnp.ones((2, 2))}
    adam, sgd = optax.adam(0.1), optax.sgd(0.1, momentum=0.9)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, adam.init(params))
        with pytest.raises(CheckpointError, match=r"mu.* holds .*, expected nothing"):
            checkpoints.restore(sgd.init(params))


def test_another_fingerprint_is_refused(tmp_path):
    _save(tmp_path, fingerprint={"sizes": [6, 8], "lr": 0.1})
    with Checkpoints(tmp_path, fingerprint={"lr": 0.1, "sizes": (6, 8)}) as same:
        assert same.restore(_state(0)).step == 2
    for other in (None, {"sizes": [6, 8], "lr": 0.2}, {"sizes": [6, 8]}):
        with Checkpoints(tmp_path, fingerprint=other) as checkpoints:
            with pytest.raises(CheckpointError, match="another run") as error:
                checkpoints.restore(_state(0))
            assert '{"lr": 0.1, "sizes": [6, 8]}' in str(error.value)
            assert f"expected {json.dumps(other, sort_keys=True)}" in str(error.value)


def test_the_home_is_a_folder_and_urls_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    for folder in ("~/runs/a", Path("~/runs/b")):
        _save(folder)
    assert _steps(tmp_path / "home" / "runs" / "a") == [1, 2]
    assert _steps(tmp_path / "home" / "runs" / "b") == [1, 2]
    for folder in (
        "gs://bucket/run",
        "s3://bucket",
        Path("gs://bucket/run"),
        "file:/a",
    ):
        with pytest.raises(ValueError, match="must be a path of this machine's files"):
            Checkpoints(folder)
    with pytest.raises(
        CheckpointError, match="cannot use the folder ~nobody-there/run"
    ):
        Checkpoints("~nobody-there/run")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# Numbers of Python, and parts


NUMBERS = {"bool": True, "int": -(2**63), "float": 0.1, "complex": 1 / 3 + 2j}


def test_numbers_of_python_come_back_as_they_were(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, NUMBERS)
        template = {"bool": False, "int": 0, "float": 0.0, "complex": 0j}
        state = checkpoints.restore(template).state
        assert state == NUMBERS
        assert {name: type(x) for name, x in state.items()} == {
            name: type(x) for name, x in NUMBERS.items()
        }
        for name, other in (("bool", 0), ("int", 0.0), ("float", 0), ("int", True)):
            with pytest.raises(CheckpointError, match=rf"\['{name}'\] holds {name} of"):
                checkpoints.restore(template | {name: other})
        with pytest.raises(
            CheckpointError, match=r"\['int'\] holds int of Python \[\]"
        ):
            checkpoints.restore(template | {"int": jnp.int32(0)})
        with pytest.raises(
            ValueError, match="at most 64 bits, got 9223372036854775808"
        ):
            checkpoints.save(1, {"int": 2**63})


@pytest.mark.parametrize(
    ("number", "saved", "other"),
    [
        (0, jnp.int32(7), 0.0),
        (0, jnp.uint8(7), False),
        (0.0, jnp.float32(0.1), 0),
        (0.0, jnp.bfloat16(0.5), 0j),
        (False, jnp.array(True), 0),
        (0j, jnp.complex64(1j), 0.0),
    ],
)
def test_a_number_in_the_template_stands_for_an_array_of_its_kind(
    tmp_path, number, saved, other
):
    """A state that starts with `step=0` is saved after `step + 1` was compiled."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"step": saved, "w": jnp.ones(2)})
        state = checkpoints.restore({"step": number, "w": jnp.zeros(2)}).state
        _assert_same(state, {"step": saved, "w": jnp.ones(2)})
        with pytest.raises(CheckpointError, match=r"\['step'\] holds .*, expected"):
            checkpoints.restore({"step": other, "w": jnp.zeros(2)})
        with pytest.raises(CheckpointError, match=r"\['w'\] holds float32 \[2\]"):
            checkpoints.restore({"step": number, "w": 0.0})


def test_weights_are_restored_without_their_optimizer(tmp_path):
    network, key = pcjax.mlp([6, 8, 4]), jax.random.key(0)
    state = training.init_state(network, optax.adam(0.1), key, jnp.ones((1, 6)))
    params = jax.eval_shape(network.init, key, jnp.ones((1, 6)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        found = checkpoints.restore(training.TrainState(params, ..., ..., ...)).state
        _assert_same(found.params, state.params)
        assert found[1:] == (..., ..., ...)
        found = checkpoints.restore(state._replace(params=...)).state
        _assert_same(found[1:], state[1:])
        # What the template has must be there all the same.
        other = jax.eval_shape(pcjax.mlp([6, 9, 4]).init, key, jnp.ones((1, 6)))
        with pytest.raises(CheckpointError, match=r"params\[0\]\['kernel'\] holds .*8"):
            checkpoints.restore(training.TrainState(other, ..., ..., ...))
        with pytest.raises(CheckpointError, match=r"opt_state.* holds .*nothing"):
            checkpoints.restore(training.TrainState(params, (), ..., ...))
        assert checkpoints.restore(...).state is ...


class Named(NamedTuple):
    a: Any
    ab: Any


def test_an_ellipsis_leaves_out_its_own_part_alone(tmp_path):
    tree = {"a": [jnp.ones(2), jnp.zeros(3)], "ab": jnp.ones(4)}
    with Checkpoints(tmp_path / "named") as checkpoints:
        checkpoints.save(0, Named(jnp.ones(2), jnp.ones(4)))
        found = checkpoints.restore(Named(..., jnp.zeros(4))).state
        _assert_same(found.ab, jnp.ones(4))
        with pytest.raises(CheckpointError, match=r"\.ab holds .*nothing"):
            checkpoints.restore(Named(..., None))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree)
        found = checkpoints.restore({"a": [..., jnp.ones(3)], "ab": jnp.ones(4)}).state
        _assert_same(found["a"][1], tree["a"][1])
        _assert_same(found["ab"], tree["ab"])
        with pytest.raises(CheckpointError, match=r"\['ab'\] holds .*nothing"):
            checkpoints.restore({"a": ...})
        with pytest.raises(TypeError, match=r"\['ab'\] must be an array or a number"):
            checkpoints.save(1, tree | {"ab": ...})


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_states_of_typed_and_untyped_keys_and_of_noise_come_back(tmp_path, make_key):
    tx = optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), optax.sgd(0.1))
    network = pcjax.mlp([6, 8, 4])
    state = training.init_state(network, tx, make_key(0), jnp.ones((1, 6)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        _assert_same(checkpoints.restore(state).state, state)


# What is visible while a checkpoint is written


def test_a_checkpoint_has_its_name_when_all_of_it_is_there(tmp_path, monkeypatch):
    """At every rename, the folders that are named by a number are whole."""
    rename, seen = Path.rename, []

    def watched(path, target):
        steps = {int(p.name) for p in tmp_path.iterdir() if p.name.isdecimal()}
        folders = [tmp_path / str(step) for step in sorted(steps)]
        if "orbax" not in path.name:
            folders.append(path)
            seen.append((path.name, Path(target).name, steps))
        for folder in folders:
            held = {f.relative_to(folder).as_posix() for f in _files(folder)}
            listed = set(json.loads((folder / "digests.json").read_text()))
            assert held == listed | {"digests.json"}
            assert any(name.startswith("manifest/") for name in listed)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    _save(tmp_path, (1, 2), keep=1)
    assert seen == [
        ("1.unfinished", "1", set()),
        ("2.unfinished", "2", {1}),
        (
            "1",
            "1.unfinished-deleted",
            {1, 2},
        ),  # the old one goes after the new has come
    ]


def test_the_format_has_its_number(tmp_path):
    """Another number leaves the runs on people's disks unreadable."""
    _save(tmp_path)
    metadata = tmp_path / "2" / "manifest" / "metadata"
    body = json.loads(json.loads(metadata.read_text())["text"])
    assert body["format"] == 1
    assert {"step", "fingerprint", "record", "leaves", "arrays"} < set(body)
    text = json.dumps(body | {"format": 2})
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    metadata.write_text(json.dumps({"text": text, "digest": digest}))
    (tmp_path / "2" / "digests.json").write_text("{}")
    assert "written by another version of this" in _assert_falls_back(tmp_path, 2, 1)


def test_what_cannot_be_read_is_named(tmp_path):
    _save(tmp_path)
    (tmp_path / "2" / "manifest" / "metadata").write_text("no JSON")
    (tmp_path / "2" / "digests.json").write_text("{}")
    reason = _assert_falls_back(tmp_path, 2, 1)
    assert "step 2: its manifest cannot be read: " in reason


# Damage


def _flip(path, position, mask):
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def _positions(size, count):
    return sorted({*np.linspace(0, size - 1, count).astype(int).tolist()})


def _assert_damage_is_seen(folder, damages):
    """Each damage to any file of checkpoint 2 is passed over for checkpoint 1."""
    count = 0
    _save(folder)
    for path in _files(folder / "2"):
        whole = path.read_bytes()
        for damage in damages(path, len(whole)):
            damage()
            count += 1
            _assert_falls_back(folder, 2, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(_state(0)).skipped == ()
    return count


@pytest.mark.faults
@pytest.mark.slow
def test_corrupted_bytes_in_any_file_are_seen(tmp_path, faults):
    def masks(size):
        if faults.all:
            return {at: 1 << random.Random(at).randrange(8) for at in range(size)}
        return dict(zip(_positions(size, 3), (1, 255, 128), strict=False))

    count = _assert_damage_is_seen(
        tmp_path,
        lambda path, size: [
            lambda at=at, mask=mask: _flip(path, at, mask)
            for at, mask in masks(size).items()
        ],
    )
    faults.report("a corrupted byte in a file of a checkpoint", count, count, count)


@pytest.mark.faults
def test_a_truncated_or_missing_file_is_seen(tmp_path, faults):
    count = _assert_damage_is_seen(
        tmp_path,
        lambda path, size: [
            path.unlink,
            *(
                lambda length=length: os.truncate(path, length)
                for length in ((0, size // 2, size - 1) if faults.all else (size - 1,))
            ),
        ],
    )
    faults.report("a truncated or missing file of a checkpoint", count, count, count)


@pytest.mark.parametrize(
    "change",
    [lambda array: array + 1, lambda x: x.reshape(10, 6), lambda x: x.view(np.int32)],
    ids=["value", "shape", "dtype"],
)
def test_digests_of_leaves_see_what_those_of_files_cannot(tmp_path, change):
    """A wrong array that was written as such, so that its files are whole."""
    _save(tmp_path)
    content = storage.read(tmp_path / "2")
    state = {str(i): array for i, array in enumerate(content.arrays)}
    number = str([array.shape for array in content.arrays].index((6, 10)))

    def rewrite(array):
        shutil.rmtree(tmp_path / "2" / "state")
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "2" / "state", state | {number: array})
        (tmp_path / "2" / "digests.json").write_text("{}")

    rewrite(state[number])
    with Checkpoints(tmp_path) as checkpoints:
        _assert_same(checkpoints.restore(_state(0)).state, _state(2))
    rewrite(change(state[number]))
    reason = _assert_falls_back(tmp_path, 2, 1)
    assert reason == "step 2: leaf ['weights'] does not match its digest"


def test_a_changed_record_is_seen(tmp_path):
    _save(tmp_path)
    manifest = tmp_path / "2" / "manifest" / "metadata"
    text = manifest.read_text()
    assert text.count("0.2") == 1
    manifest.write_text(text.replace("0.2", "0.3"))
    (tmp_path / "2" / "digests.json").write_text("{}")
    assert "manifest does not match the" in _assert_falls_back(tmp_path, 2, 1)


def test_a_checkpoint_under_another_number_is_seen(tmp_path):
    _save(tmp_path)
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.warns(CheckpointWarning, match="step 3: it was written as step 1"),
    ):
        assert checkpoints.restore(_state(0)).step == 2


def test_if_none_is_whole_nothing_is_touched(tmp_path):
    _save(tmp_path)
    (tmp_path / "1" / "manifest" / "metadata").unlink()
    _flip(tmp_path / "2" / "digests.json", 0, 1)
    before = _files(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"no checkpoint .* whole") as e:
                checkpoints.restore(_state(0))
            assert "step 2: its digests.json" in str(e.value)
            assert "step 1: its file manifest/metadata" in str(e.value)
        # A run that starts anew must not push them out.
        with pytest.raises(CheckpointError, match="must be larger than 2"):
            checkpoints.save(1, _state(1))
    assert _files(tmp_path) == before


def test_a_damaged_checkpoint_makes_way_for_a_new_one(tmp_path):
    _save(tmp_path, (1, 2, 5), keep=3)
    _flip(tmp_path / "5" / "digests.json", 0, 1)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.warns(CheckpointWarning):
            assert checkpoints.restore(_state(0)).step == 2
        checkpoints.save(3, _state(3), {})
        checkpoints.save(5, _state(5), {})
        restored = checkpoints.restore(_state(0))
    assert restored.step == 5
    _assert_same(restored.state, _state(5))
    assert _steps(tmp_path) == [5]
    assert (tmp_path / "5.damaged").is_dir()


# Kills


WRITER = """
    import sys, jax, jax.numpy as jnp
    from pcjax.checkpoints.checkpoints import Checkpoints
    template = {"w": jnp.zeros((300, 100)), "key": jax.random.key(0)}
    with Checkpoints(sys.argv[1]) as checkpoints:
        restored = checkpoints.restore(template)
        step = restored.step if restored else 0
        while True:
            step += 1
            state = {"w": template["w"] + step, "key": jax.random.key(step)}
            checkpoints.save(step, state, [step / 3])
            checkpoints.wait()
            print(step, flush=True)
"""


def _kill_and_restore(folder, times):
    template = {"w": jnp.zeros((300, 100)), "key": jax.random.key(0)}
    dice = random.Random(0)
    for _ in range(times):
        process = _python(WRITER, str(folder))
        acknowledged = int(process.stdout.readline())
        timer = threading.Timer(dice.uniform(0, 0.4), process.kill)
        timer.start()
        for line in process.stdout:
            acknowledged = int(line)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        timer.join()
        with Checkpoints(folder) as checkpoints:
            # Warnings are errors here: nothing that is not whole looks like it.
            restored = checkpoints.restore(template)
            assert not list(folder.glob("*.unfinished*"))
        assert restored.step in (acknowledged, acknowledged + 1)
        assert restored.record == [restored.step / 3]
        np.testing.assert_array_equal(
            restored.state["w"], np.full((300, 100), restored.step, np.float32)
        )
        np.testing.assert_array_equal(
            jax.random.key_data(restored.state["key"]), [0, restored.step]
        )


@pytest.mark.faults
@pytest.mark.slow
def test_many_kills_leave_whole_checkpoints(tmp_path, faults):
    kills = 20 if faults.all else 2
    _kill_and_restore(tmp_path, kills)
    faults.report("SIGKILL while checkpoints are written", kills, kills, kills)


# Two writers


@pytest.mark.faults
def test_the_second_writer_is_refused(tmp_path, faults):
    with Checkpoints(tmp_path), pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path)
    assert str(error.value) == (
        f"Checkpoints: cannot use the folder {tmp_path}: process {os.getpid()} is "
        "using it already."
    )
    code = """
        import sys, time
        from pcjax.checkpoints.checkpoints import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        print("open", flush=True)
        time.sleep(60)
    """
    process = _python(code, str(tmp_path))
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(CheckpointError, match=f"process {process.pid} is using it"):
            Checkpoints(tmp_path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    # The lock went with its process.
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({}) is None
    faults.report("a second writer of a checkpoint folder", 2, 2)


# Places that cannot be written


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=f"cannot use the folder {path}"):
            Checkpoints(path)


def test_a_folder_that_is_gone_is_reported(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        shutil.rmtree(tmp_path / "run")
        for call in (
            lambda: checkpoints.save(1, _state(1)),
            lambda: checkpoints.restore(_state(0)),
        ):
            with pytest.raises(CheckpointError, match="cannot read the folder"):
                call()


@pytest.mark.parametrize("call", ["save", "wait", "close", "restore"])
def test_a_failed_save_is_raised_by_the_next_call(tmp_path, call):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _state(1), {"loss": 0.1})
    checkpoints.wait()
    # What is to be renamed cannot be: its name is taken by a file.
    (tmp_path / "2").write_text("")
    checkpoints.save(2, _state(2))
    calls = {
        "save": lambda: checkpoints.save(3, _state(3)),
        "wait": checkpoints.wait,
        "close": checkpoints.close,
        "restore": lambda: checkpoints.restore(_state(0)),
    }
    with pytest.raises(CheckpointError, match="step 2 was not saved in") as error:
        calls[call]()
    assert isinstance(error.value.__cause__, OSError)
    # It is raised once.
    checkpoints.close()
    (tmp_path / "2").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "1"}
    with Checkpoints(tmp_path) as checkpoints:
        _assert_same(checkpoints.restore(_state(0)).state, _state(1))


@pytest.mark.faults
def test_a_full_disk_is_reported_and_the_older_checkpoints_stay(tmp_path, faults):
    code = """
        import resource, sys, numpy as np
        from pcjax.checkpoints.checkpoints import CheckpointError, Checkpoints
        noise = np.random.default_rng(0).normal(size=100_000)
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(1, noise)
            checkpoints.save(2, noise + 1)
            checkpoints.wait()
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            checkpoints.save(3, noise + 2)
            try:
                checkpoints.save(4, noise + 3)
            except CheckpointError as error:
                words = "step 3 was not saved", "File too large"
                print(*(word in str(error) for word in words))
            restored = checkpoints.restore(noise)
            print(restored.step, np.array_equal(restored.state, noise + 1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            checkpoints.save(4, noise + 3)
            restored = checkpoints.restore(noise)
            print(restored.step, np.array_equal(restored.state, noise + 3))
    """
    assert _output(code, str(tmp_path)) == "True True\n2 True\n4 True\n"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "2", "4"}
    faults.report("a full disk while a checkpoint is written", 1, 1, 1)


# Bad input


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(TypeError, match="the fingerprint is no JSON"):
        Checkpoints(tmp_path, fingerprint={"x": jnp.ones(2)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="at least 0, got -1"):
            checkpoints.save(-1, {})
        with pytest.raises(TypeError, match=r"\['x'\] must be an array .*, got '3'"):
            checkpoints.save(0, {"x": "3"})
        with pytest.raises(TypeError, match="the record is no JSON"):
            checkpoints.save(0, {}, np.float32(3))
        checkpoints.save(3, {})
        for step in (3, 2):
            with pytest.raises(CheckpointError, match=f"{step} must be larger than 3"):
                checkpoints.save(step, {})
        assert checkpoints.restore({}).state == {}
    checkpoints.close()
    for call in (lambda: checkpoints.save(4, {}), lambda: checkpoints.restore({})):
        with pytest.raises(CheckpointError, match="closed"):
            call()


def test_double_precision_is_not_lost_in_silence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, np.arange(3.0))
        template = jax.ShapeDtypeStruct((3,), np.float64)
        with pytest.raises(ValueError, match="float64 only with jax_enable_x64"):
            checkpoints.restore(template)


def test_a_step_that_is_damaged_twice_makes_way_twice(tmp_path):
    _save(tmp_path, (1, 2))
    for _ in range(2):
        _flip(tmp_path / "2" / "digests.json", 0, 1)
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.warns(CheckpointWarning):
                assert checkpoints.restore(_state(0)).step == 1
            checkpoints.save(2, _state(2), {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0)).step == 2


def test_the_lock_names_its_own_process_alone(tmp_path):
    (tmp_path / ".lock").write_text("9" * 18)  # of a process that is gone
    with (
        Checkpoints(tmp_path),
        pytest.raises(CheckpointError, match=rf"process {os.getpid()} is using it"),
    ):
        Checkpoints(tmp_path)
