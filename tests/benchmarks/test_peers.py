"""The comparison with other libraries, driven by programs that only pretend."""

import io
import json
import sys

import numpy as np
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import environments, libraries, protocol, reference, report
from benchmarks.peers.process import Process, ProcessError
from benchmarks.peers.protocol import Method
from benchmarks.peers.report import Row
from tests.tiers import thorough

_SIZES = (7, 6, 5, 4, 3)
_IL = Method("simultaneous", 3, "SGD")
_BP = Method("backprop", 0, "SGD")

_FAKE = """
import json, sys

def say(**answer):
    print(json.dumps(answer), flush=True)

behaviour, seconds = sys.argv[1], float(sys.argv[2])
if behaviour == "import":
    import a_library_that_is_not_there
say(versions={"fake": "1.2", "jax": "0.1"}, python="3", environment={})
for line in sys.stdin:
    request = json.loads(line)
    if "step" in request:
        if behaviour == "dies":
            raise RuntimeError("out of luck")
        say(seconds=seconds * (1 + request["step"]))
    elif request["build"][0] == "sequential":
        say(unsupported="not here")
    elif behaviour == "lazy":
        say(index=0, build_seconds=1.0, checks={
            "changed": [True, False], "update_error": None, "loss": [2.0, 1.0]})
    else:
        say(index=request["build"][1], build_seconds=1.0, checks={
            "changed": [True, True], "update_error": 1e-4, "loss": [2.0, 1.0]})
"""


@pytest.fixture
def fake(tmp_path):
    """Makes the command of a program that speaks the protocol."""
    program = tmp_path / "fake.py"
    program.write_text(_FAKE)
    opened = []

    def start(behaviour="works", seconds=1.0, timeout=60.0):
        command = [sys.executable, program, behaviour, str(seconds)]
        process = Process(command, {}, timeout)
        opened.append(process)
        return process

    yield start
    for process in opened:
        process.close()


@pytest.fixture
def started(fake):
    """Fakes in the place of pcjax (1 ms), one library and one that breaks down."""

    def make(methods, **behaviours):
        found = peers.Started({}, [], {}, {})
        for name, (behaviour, seconds) in behaviours.items():
            process = fake(behaviour, seconds)
            found.processes[name] = process
            found.libraries[name] = {"version": "", "backend": "", "failure": ""}
            for method in methods:
                row, index = peers._build(name, method, process)
                found.rows[name, method] = row
                if index is not None:
                    found.jobs.append(peers.Job(name, method, process, index))
        return found

    return make


def _by_key(rows):
    return {(row.peer, row.method): row for row in rows}


def test_ratios_are_those_of_medians_and_of_rounds(started):
    methods = [_BP, _IL]
    fakes = started(methods, pcjax=("works", 0.001), other=("works", 0.003))
    rows = _by_key(peers.measure(fakes, rounds=3, steps=5))
    row = rows["other", _IL]
    assert len(row.samples) == 3
    # The fake takes its seconds times one more than the index, which is T.
    assert row.median == pytest.approx(0.012)
    assert row.versus_backprop == pytest.approx(12)
    assert row.versus_pcjax == pytest.approx(3)
    assert row.paired == (pytest.approx(3), pytest.approx(3))


def test_paired_ratios_compare_the_same_round():
    base = Row("pcjax", _BP, report.MEASURED, samples=(1.0, 10.0, 2.0))
    other = Row("other", _BP, report.MEASURED, samples=(2.0, 10.0, 6.0))
    _, row = report.compare([base, other])
    assert row.versus_pcjax == pytest.approx(6.0 / 2.0)
    assert row.paired == (pytest.approx(2.0), pytest.approx(1.0))


def test_what_a_library_does_not_offer_is_said(started, capsys):
    sequential = Method("sequential", 3, "SGD")
    fakes = started([_BP, sequential], pcjax=("works", 1e-3), other=("works", 1e-3))
    rows = peers.measure(fakes, rounds=1, steps=1)
    row = _by_key(rows)["other", sequential]
    assert (row.status, row.reason) == (report.ABSENT, "not here")
    assert row.samples == ()
    assert row.versus_pcjax is None


def test_a_program_that_does_not_do_the_work_is_not_timed(started):
    fakes = started([_BP], pcjax=("works", 1e-3), other=("lazy", 1e-9))
    assert [job.peer for job in fakes.jobs] == ["pcjax"]
    row = _by_key(peers.measure(fakes, rounds=1, steps=1))["other", _BP]
    assert (row.status, row.reason) == (report.FAILED, "not all weights move")


def test_a_process_that_dies_leaves_a_reason(started, capsys):
    fakes = started([_BP, _IL], pcjax=("works", 1e-3), other=("dies", 1e-3))
    rows = peers.measure(fakes, rounds=2, steps=1)
    for method in (_BP, _IL):
        row = _by_key(rows)["other", method]
        assert (row.status, row.samples) == (report.FAILED, ())
        assert row.reason == "RuntimeError: out of luck"
    assert len(_by_key(rows)["pcjax", _IL].samples) == 2
    report.show(rows, fakes.libraries, "a net")
    assert "other: not measured (RuntimeError: out of luck)" in capsys.readouterr().out


def test_a_process_that_cannot_start_leaves_a_reason(fake):
    with pytest.raises(ProcessError, match=r"^ModuleNotFoundError: No module named"):
        fake("import")


def test_a_process_that_does_not_answer_is_ended(tmp_path):
    with pytest.raises(ProcessError, match="no answer within 0 s"):
        Process([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.2)


def _borrowed_environment(folder, **_):
    """An environment whose Python is this one, because pip takes long to unpack."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("borrowed", [True, *thorough([False])])
def test_a_new_environment_that_cannot_be_filled_says_why(
    tmp_path, borrowed, monkeypatch
):
    if borrowed:
        monkeypatch.setattr(environments.venv, "create", _borrowed_environment)
    nowhere = libraries.Environment((("--no-index", "a-library-that-is-nowhere"),))
    with pytest.raises(environments.InstallError, match=r"^No matching distribution"):
        environments.install(nowhere, tmp_path / "env")
    assert not (tmp_path / "env" / "installed.json").exists()


def test_a_library_that_cannot_be_installed_is_reported(tmp_path, monkeypatch, capsys):
    """The whole command, with nothing but a library that is nowhere to be had."""
    nowhere = libraries.Environment((("--no-index", "a-library-that-is-nowhere"),))
    missing = libraries.Peer("Missing", ("missing",), "missing", "nothing")
    monkeypatch.setattr(environments.venv, "create", _borrowed_environment)
    monkeypatch.setitem(libraries.ENVIRONMENTS, "missing", nowhere)
    monkeypatch.setattr(libraries, "PEERS", (libraries.PEERS[0], missing))
    real = Process.__init__

    def start(self, command, settings, timeout=60.0):
        fake = "import json; " + _FAKE.replace("sys.argv[1]", "'works'").replace(
            "sys.argv[2]", "'0.001'"
        )
        real(self, [sys.executable, "-c", fake], settings, timeout)

    monkeypatch.setattr(Process, "__init__", start)
    json_file, plot_file = tmp_path / "a" / "out.json", tmp_path / "b" / "out.png"
    config = peers.Config(
        rounds=2, steps=1, envs=tmp_path / "envs", json=json_file, plot=plot_file
    )
    monkeypatch.setattr(sys, "argv", ["peers", "--json", str(json_file)])
    peers.main(config)
    text = json_file.read_text()
    result = json.loads(text)
    reason = "No matching distribution found for a-library-that-is-nowhere"
    assert result["libraries"]["Missing"]["failure"] == reason
    assert f"Missing: not measured ({reason})" in result["notes"]
    assert {row["status"] for row in result["rows"] if row["library"] == "Missing"} == {
        "failed"
    }
    assert reason in " ".join(capsys.readouterr().out.split())
    assert plot_file.stat().st_size > 0
    assert str(tmp_path) not in text


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(environments, "_pip", lambda python, *a: calls.append(a))
    monkeypatch.setattr(environments.venv, "create", lambda folder, **_: folder.mkdir())
    wanted = libraries.Environment((("a==1",), ("--no-deps", "b==2")))
    folder = tmp_path / "env"
    for _ in range(2):
        assert environments.install(wanted, folder) == folder / "bin" / "python"
    assert calls == [("a==1",), ("--no-deps", "b==2")]


def test_an_environment_for_a_newer_python_is_refused(tmp_path):
    future = libraries.Environment((("a==1",),), python=(99, 0))
    with pytest.raises(environments.InstallError, match=r"needs Python 99\.0 or newer"):
        environments.install(future, tmp_path / "env")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nERROR: no such thing\nhint: b", "no such thing"),
        ("Traceback\n  File x\nValueError: bad\n", "ValueError: bad"),
        ("OSError: /home/someone/x/y.so is missing", "OSError: y.so is missing"),
        ("ERROR: see https://host/page for more", "see (address) for more"),
        ("only this", "only this"),
        ("", "no reason given"),
    ],
)
def test_the_last_error_names_no_place(text, expected):
    assert environments.last_error(text) == expected


def test_unknown_libraries_are_refused():
    with pytest.raises(ValueError, match="no nobody with mlp; there are pcjax, PyT"):
        libraries.select(["nobody"])
    with pytest.raises(ValueError, match="no JPC with vgg5; there are pcjax, PCX"):
        libraries.select(["JPC"], "vgg5")
    assert {p.name for p in libraries.select([], "vgg5")} == {
        "pcjax",
        "PCX",
        "PCX, new JAX",
        "FabricPC",
    }
    assert [peer.name for peer in libraries.select(["jpc"])] == ["pcjax", "JPC"]


def test_a_net_that_a_library_has_not_is_not_built(monkeypatch):
    monkeypatch.setattr(protocol, "NET", "vgg5")
    library = protocol.Library(pytest.fail, _MODELS[0], ("numpy",))
    with pytest.raises(protocol.UnsupportedError, match="vgg5 is not written for it"):
        protocol._do(library, [], {"build": ["backprop", 0, "SGD"]})


def test_every_library_has_an_environment_and_a_program():
    for peer in libraries.PEERS:
        assert peer.environment is None or peer.environment in libraries.ENVIRONMENTS
        module = peer.module[0].rpartition(".")[2]
        folder = environments.Path(environments.__file__).parent
        assert (folder / f"{module}.py").exists()


# The oracle, and the check that uses it.


@pytest.fixture
def small(monkeypatch):
    """The check on a net that is small enough for finite differences."""
    monkeypatch.setattr(protocol, "SIZES", _SIZES)
    monkeypatch.setattr(protocol, "BATCH_SIZE", 4)


@pytest.fixture
def small_vgg(small, monkeypatch):
    """The same of a VGG5 of width 1 for 16 x 16 images."""
    monkeypatch.setattr(protocol, "NET", "vgg5")
    monkeypatch.setattr(protocol, "IMAGE", (16, 16, 3))
    monkeypatch.setattr(protocol, "CHANNELS", (1, 2, 4, 4))


def _weights(dtype=np.float64):
    generator = np.random.default_rng(3)
    return [
        (
            generator.normal(0, 0.5, shape).astype(dtype),
            generator.normal(size=shape[-1]),
        )
        for shape in protocol.kernel_shapes()
    ]


def _numerical(function, weights, step=1e-6):
    """Central differences of a function of the weights."""
    gradients = []
    for layer, pair in enumerate(weights):
        parts = []
        for part, array in enumerate(pair):
            gradient = np.zeros_like(array)
            for index in np.ndindex(array.shape):
                values = []
                for sign in (1, -1):
                    moved = [[a.copy() for a in p] for p in weights]
                    moved[layer][part][index] += sign * step
                    values.append(function([tuple(p) for p in moved]))
                gradient[index] = (values[0] - values[1]) / (2 * step)
            parts.append(gradient)
        gradients.append(tuple(parts))
    return gradients


_MODELS = [
    reference.Model(layout, loss)
    for layout in ("pre", "post")
    for loss in ("softmax cross-entropy", "squared error")
]


@pytest.mark.parametrize("model", _MODELS, ids=str)
def test_the_oracles_backprop_is_the_gradient_of_its_loss(model, small):
    inputs, targets = protocol.batch()
    weights = _weights()
    found = reference.gradients(model, weights, inputs, targets, "backprop", 0, 0.1)
    expected = _numerical(lambda w: reference.loss(model, w, inputs, targets), weights)
    for pair, other in zip(found, expected, strict=True):
        for a, b in zip(pair, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-8)


def test_the_oracles_convolutions_have_the_gradient_of_their_loss(small_vgg):
    inputs, targets = protocol.batch()
    assert inputs.shape == (4, 16, 16, 3)
    weights, model = _weights(), _MODELS[-2]
    assert [w.shape for w, _ in weights][-2:] == [(3, 3, 4, 4), (4, 3)]
    found = reference.gradients(model, weights, inputs, targets, "backprop", 0, 0.1)
    expected = _numerical(lambda w: reference.loss(model, w, inputs, targets), weights)
    for pair, other in zip(found, expected, strict=True):
        for a, b in zip(pair, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    ("inference", "net"),
    [
        ("simultaneous", "mlp"),
        ("sequential", "mlp"),
        ("error-based", "mlp"),
        ("sequential", "vgg5"),
        *thorough([("simultaneous", "vgg5"), ("error-based", "vgg5")]),
    ],
)
def test_the_oracles_inference_is_pcjaxs(inference, net, small, request):
    """Two programs written apart; in float32, for jax has no other here."""
    if net == "vgg5":
        request.getfixturevalue("small_vgg")
    import jax
    import jax.numpy as jnp

    import pcjax

    inputs, targets = protocol.batch()
    weights = _weights()
    network = (
        pcjax.mlp(_SIZES)
        if net == "mlp"
        else pcjax.vgg(5, 3, width=1, activation=jax.nn.relu)
    )
    method = getattr(pcjax, inference.replace("-", "_"))(4, 0.1)
    grad_fn = jax.jit(pcjax.value_and_grad(network, method, output=pcjax.softmax))
    params = tuple(
        {"kernel": jnp.asarray(w), "bias": jnp.asarray(b)} for w, b in weights
    )
    _, expected = grad_fn(params, inputs, targets)
    layout = "pre" if net == "mlp" else "post"
    model = reference.Model(layout, "softmax cross-entropy")
    found = reference.gradients(model, weights, inputs, targets, inference, 4, 0.1)
    for (w, b), grads in zip(found, expected, strict=True):
        np.testing.assert_allclose(w, grads["kernel"], atol=1e-5)
        np.testing.assert_allclose(b, grads["bias"], atol=1e-5)


def _program(model, inference, num_steps, skip=None, learning_rate=None):
    """Training by the oracle itself, in float32."""
    state = [[(w.astype(np.float32), b.astype(np.float32)) for w, b in _weights()]]
    inputs, targets = protocol.batch()
    rate = learning_rate or protocol.LEARNING_RATES["SGD"]

    def run(count):
        for _ in range(count):
            gradients = reference.gradients(
                model,
                state[0],
                inputs,
                targets,
                inference,
                num_steps,
                protocol.STEP_SIZE,
            )
            state[0] = [
                (w, b)
                if layer == skip
                else ((w - rate * dw).astype(np.float32), (b - rate * db).astype("f4"))
                for layer, ((w, b), (dw, db)) in enumerate(
                    zip(state[0], gradients, strict=True)
                )
            ]

    return protocol.Program(run, lambda: list(state[0]))


@pytest.mark.parametrize("model", _MODELS, ids=str)
def test_the_check_passes_an_honest_program(model, small):
    checks = protocol.check(_program(model, "simultaneous", 3), _IL, model)
    assert report.complaint(checks) == ""
    assert checks["update_error"] < 1e-3


def test_the_check_finds_skipped_iterations(small):
    model = _MODELS[0]
    method = _IL._replace(num_steps=6)
    checks = protocol.check(_program(model, "simultaneous", 5), method, model)
    assert "off the equations" in report.complaint(checks)


def test_the_check_finds_skipped_layers(small):
    model = _MODELS[0]
    checks = protocol.check(_program(model, "backprop", 0, skip=1), _BP, model)
    assert checks["changed"] == [True, False, True, True]
    assert report.complaint(checks) == "not all weights move"


def test_the_check_finds_a_loss_that_grows(small):
    model = _MODELS[0]
    adam = _BP._replace(optimizer="Adam")
    checks = protocol.check(
        _program(model, "backprop", 0, learning_rate=-1e-3), adam, model
    )
    assert checks["update_error"] is None
    assert report.complaint(checks).startswith("its loss went from")


def test_the_check_finds_another_network(small):
    program = _program(_MODELS[0], "backprop", 0)
    narrow = protocol.Program(program.run, lambda: program.weights()[1:])
    with pytest.raises(ValueError, match=r"the network has layers \[\(6, 5\), \(5"):
        protocol.check(narrow, _BP, _MODELS[0])


def test_a_program_answers_every_request(small, monkeypatch):
    """The other side of the protocol, in this process."""
    model = _MODELS[0]

    def build(method):
        if method.inference != "backprop":
            raise protocol.UnsupportedError("backprop alone")
        if method.optimizer != "SGD":
            raise RuntimeError("no such optimizer")
        return _program(model, "backprop", 0)

    library = protocol.Library(build, model, ("numpy",))
    requests = [{"build": ["backprop", 0, "SGD"]}, {"build": list(_IL)}]
    requests += [{"build": ["backprop", 0, "Adam"]}, {"step": 0, "count": 2}]
    answers = io.StringIO()
    programs = []
    for request in requests:
        protocol._answer(
            answers, lambda request=request: protocol._do(library, programs, request)
        )
    built, unsupported, error, step = map(json.loads, answers.getvalue().splitlines())
    assert built["index"] == 0
    assert built["checks"]["loss"][1] < built["checks"]["loss"][0]
    assert unsupported == {"unsupported": "backprop alone"}
    assert error == {"error": "RuntimeError: no such optimizer"}
    assert step["seconds"] > 0


def test_processor_time_between_requests_is_idle(fake):
    process = fake("works", 0.001)
    process.start_idle_count()
    process.ask(step=0, count=1)
    assert 0.0 <= process.idle_load() < 0.5


def test_settings_keep_waiting_threads_off_the_cores():
    settings = peers.thread_settings()
    assert settings["OMP_WAIT_POLICY"] == "passive"
    assert settings["JAX_PLATFORMS"] == "cpu"


def test_how_much_longer_more_iterations_take():
    def row(peer, num_steps, optimizer, seconds):
        method = Method("simultaneous", num_steps, optimizer)
        return Row(peer, method, report.MEASURED, samples=(seconds,))

    rows = [row("a", 5, "SGD", 2.0), row("a", 8, "SGD", 3.0), row("a", 8, "Adam", 9.0)]
    rows.append(Row("a", Method("sequential", 3, "SGD"), report.MEASURED, samples=(1,)))
    assert report.time_ratios(rows) == {"a": {"SGD": 1.5}}


def test_methods_have_the_names_of_the_other_benchmarks():
    assert [str(method) for method in libraries.METHODS["mlp"][:3]] == [
        "BP-SGD",
        "BP-Adam",
        "IL-SGD T=3",
    ]
