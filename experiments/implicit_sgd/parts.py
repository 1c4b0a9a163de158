"""The measurements of `experiments.implicit_sgd`, a function for each of its parts."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.implicit_sgd import measures, rules
from experiments.implicit_sgd.measures import summary
from experiments.implicit_sgd.rules import Problem
from pcjax.theory.proximal import batch_loss, compare, proximal_step
from pcjax.theory.theorem1 import lemma1_weights, proximal_weights

KINK_STEPS = 300  # of the solver; with ReLU more do not help
ALPHA = 0.05  # one static step size for all layers
SCALES = (0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.997, 0.999, 1.0)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      betas: step sizes of implicit SGD.
      curvatures: beta times the largest curvature of an example's loss, for Theorem 2.
      fit: where slopes are fitted, in units of `curvatures`.
      checkpoints: training iterations at which directions are compared.
      examples: single examples per measurement.
      batch: size of the mini-batches.
      max_steps: the most iterations of inference.
      solver_steps: the most iterations of the reference solver.
      followed: inference iterations that are followed one by one.
    """

    betas: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    curvatures: tuple[float, ...] = tuple(10 ** (i / 3) for i in range(-12, 4))
    fit: tuple[float, float] = (0.9e-4, 3e-2)
    checkpoints: tuple[int, ...] = (0, 10, 30, 100, 300, 1000)
    examples: int = 16
    batch: int = 64
    max_steps: int = 5000
    solver_steps: int = 1000
    followed: int = 300


def theorem1(problem: Problem, size: Size) -> dict[str, Any]:
    """(a) The rules' updates against the true proximal update, over beta."""
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    result: dict[str, Any] = {"betas": size.betas, "solver": [], "rules": {}}
    names = ["BP", *(rule.label for rule in rules.RULES)]
    rows: dict[str, list] = {name: [] for name in names}
    gradient = measures.gradients(*example)
    for beta in size.betas:
        proximal = measures.proximal_steps(*example, beta, size.solver_steps, 1e-10)
        result["solver"].append(_solver_report(proximal))
        explicit = jax.tree.map(lambda g, b=beta: -b * g, gradient)
        rests = {
            rule.label: measures.apply_rule(problem, rule, beta, size.max_steps)
            for rule in rules.RULES
        }
        for name in names:
            update = explicit if name == "BP" else rests[name].update
            found = jax.vmap(compare)(update, proximal.update)
            row = {
                "cosine": summary(found.cosine, proximal.converged),
                "distance": summary(found.distance, proximal.converged),
            }
            if name != "BP":
                row["gap"] = summary(rests[name].gap, proximal.converged)
                row["residual"] = summary(rests[name].residual)
            rows[name].append(row)
    result["rules"] = rows
    return result


def during_inference(problem: Problem, size: Size, beta: float) -> dict[str, Any]:
    """(a) The same as inference proceeds, for one beta."""
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    proximal = measures.proximal_steps(*example, beta, size.solver_steps, 1e-10)
    rows = {}
    for rule in rules.RULES:
        found = measures.follow(problem, rule, beta, proximal.update, size.followed)
        last = len(found.cosine) - 1
        shown = np.unique(np.geomspace(1, last + 1, 40).astype(int)) - 1
        rows[rule.label] = {
            "iterations": shown.tolist(),
            "cosine": summary(found.cosine[shown], proximal.converged),
            "distance": summary(found.distance[shown], proximal.converged),
        }
    return {"beta": beta, "solver": _solver_report(proximal), "rules": rows}


def theorem1_limit(problem: Problem, size: Size, beta: float) -> dict[str, Any]:
    """(a) What becomes of the distance as Theorem 1's own limit is approached.

    Static step sizes `alpha_l = s / ||f(h_l)||^2`, with the activities those of the
    same weights' equilibrium under normalised steps: at s = 1 the step sizes are plain
    numbers and the local errors are minimised to zero. And one number for all layers,
    with beta going to 0.
    """
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    proximal = measures.proximal_steps(*example, beta, size.solver_steps, 1e-10)
    versions = {
        rules.CORRECTED: proximal_weights,
        rules.PROOF: lemma1_weights,
    }

    def measure(weights, alphas, beta, proximal):
        rest = measures.apply_static(problem, weights, alphas, beta, size.max_steps)
        found = jax.vmap(compare)(rest.update, proximal.update)
        return {
            "gap": summary(rest.gap, proximal.converged),
            "distance": summary(found.distance, proximal.converged),
            "cosine": summary(found.cosine, proximal.converged),
            "residual": summary(rest.residual),
        }

    result: dict[str, Any] = {"static": {"beta": beta, "scales": SCALES}}
    for rule, weights in versions.items():
        rest = measures.apply_rule(problem, rule, beta, size.max_steps)
        alphas = measures.static_step_sizes(problem, rest.activities)
        result["static"][rule.label] = [
            measure(weights, [s * alpha for alpha in alphas], beta, proximal)
            for s in SCALES
        ]
    betas = [min(size.betas) / 100, min(size.betas) / 10, *size.betas]
    steps = [
        measures.proximal_steps(*example, b, size.solver_steps, 1e-10) for b in betas
    ]
    same = [jnp.full(len(problem.inputs), ALPHA)] * len(problem.network.layers)
    result["small_beta"] = {"betas": betas, "alpha": ALPHA}
    for rule, weights in versions.items():
        result["small_beta"][rule.label] = [
            measure(weights, same, b, step)
            for b, step in zip(betas, steps, strict=True)
        ]
    return result


def theorem2(problem: Problem, size: Size) -> dict[str, Any]:
    """(b) Distances of the implicit step from the explicit and the Newton step.

    Relative to `||beta grad L||`, with beta in units of one over the largest curvature
    of the example's loss. The slopes printed are those of the absolute distance, one
    more than those of the relative one.
    """
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    gradient = measures.gradients(*example)
    largest = measures.curvatures(*example)
    rows: dict[str, list] = {"explicit": [], "newton": []}
    valid = []
    for curvature in size.curvatures:
        betas = curvature / largest
        proximal = measures.proximal_steps(*example, betas, size.solver_steps, 1e-12)
        newton = measures.newton_steps(*example, betas, 1e-12)
        explicit = jax.vmap(lambda b, g: jax.tree.map(lambda x: -b * x, g))(
            betas, gradient
        )
        scale = betas * jax.vmap(measures.norm)(gradient)
        for name, update in (("explicit", explicit), ("newton", newton.update)):
            difference = jax.tree.map(jnp.subtract, update, proximal.update)
            rows[name].append(jax.vmap(measures.norm)(difference) / scale)
        # Below 1e-9 the solver still tells; the median of the rest is what counts.
        valid.append((proximal.residual < 1e-9) & (newton.residual < 1e-9))
    curvatures = np.array(size.curvatures)
    chosen = (size.fit[0] <= curvatures) & (curvatures <= size.fit[1])
    solved = np.asarray(valid)
    result: dict[str, Any] = {
        "curvatures": size.curvatures,
        "fit": size.fit,
        "largest_curvature": summary(largest),
    }
    for name, values in rows.items():
        table = np.asarray(values)
        slopes = [
            1 + np.polyfit(np.log(curvatures[chosen]), np.log(column), 1)[0]
            for column, good in zip(table[chosen].T, solved[chosen].T, strict=True)
            if good.all()
        ]
        result[name] = {"distance": summary(table, solved), "slope": summary(slopes)}
    return result


def directions(problem: Problem, size: Size, beta: float, batch: bool) -> dict:
    """(c) Cosines between updates, of single examples or of the mean of a batch."""
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    proximal = measures.proximal_steps(*example, beta, size.solver_steps, 1e-8)
    newton = measures.newton_steps(*example, beta)
    updates = {
        "SeqIL": measures.apply_rule(problem, rules.SEQUENTIAL, beta, 0).update,
        "IL": measures.apply_rule(problem, rules.PLAIN, beta, size.max_steps).update,
        "implicit": proximal.update,
        "BP": jax.tree.map(jnp.negative, measures.gradients(*example)),
        "Newton": newton.update,
    }
    valid = np.asarray(proximal.converged & newton.converged)
    if batch:
        updates = jax.tree.map(lambda x: jnp.mean(x[valid], 0)[None], updates)
    pairs = [(a, b) for a in ("SeqIL", "IL", "implicit") for b in ("BP", "Newton")]
    pairs += [("SeqIL", "implicit"), ("IL", "implicit"), ("BP", "Newton")]
    return {
        "examples": int(valid.sum()),
        **{
            f"{a}, {b}": summary(
                jax.vmap(compare)(updates[a], updates[b]).cosine,
                None if batch else valid,
            )
            for a, b in pairs
        },
    }


def mini_batch(problem: Problem, size: Size) -> dict[str, Any]:
    """(d) Eq. 27: the mean of updates against the mean of true proximal updates."""
    example = (problem.network, problem.params, problem.inputs, problem.targets)
    loss_fn = batch_loss(problem.network, problem.inputs, problem.targets)
    result: dict[str, Any] = {
        "betas": size.betas,
        "examples": [],
        "newton_converged": [],
        "rows": {},
    }
    for beta in size.betas:
        steps = measures.proximal_steps(*example, beta, size.solver_steps, 1e-10)
        good = np.asarray(steps.converged)
        result["examples"].append(int(good.sum()))

        def mean(tree, good=good):
            return jax.tree.map(lambda x: jnp.mean(x[good], 0), tree)

        reference = mean(steps.update)
        updates = {
            rule.label: mean(
                measures.apply_rule(problem, rule, beta, size.max_steps).update
            )
            for rule in rules.RULES
        }
        joint = partial(proximal_step, tolerance=1e-8, max_steps=size.solver_steps)
        updates["implicit step of the mean loss"] = jax.jit(partial(joint, loss_fn))(
            problem.params, beta
        ).update
        updates["BP"] = jax.tree.map(
            lambda g, b=beta: -b * g, mean(measures.gradients(*example))
        )
        newton = measures.newton_steps(*example, beta)
        result["newton_converged"].append(int(newton.converged.sum()))
        updates["mean of Newton steps"] = mean(newton.update)
        for name, update in updates.items():
            found = compare(update, reference)
            result["rows"].setdefault(name, []).append(
                {"cosine": float(found.cosine), "distance": float(found.distance)}
            )
    return result


def kinks(
    networks: dict[str, tuple[Any, Any]], size: Size, inputs: Any, targets: Any
) -> dict[str, Any]:
    """How often the implicit equation is solved, with tanh and with ReLU.

    `networks` are networks with untrained parameters, by name.
    """
    result: dict[str, Any] = {"betas": size.betas}
    for name, (network, params) in networks.items():
        result[name] = []
        for beta in size.betas:
            steps = measures.proximal_steps(
                network, params, inputs, targets, beta, KINK_STEPS, 1e-8
            )
            result[name].append(
                {
                    **_solver_report(steps),
                    "nearest_kink": summary(
                        measures.nearest_kinks(network, params, inputs, steps.update),
                        ~steps.converged,
                    ),
                }
            )
    return result


def _solver_report(steps: Any) -> dict[str, Any]:
    return {
        "converged": f"{int(steps.converged.sum())} of {steps.converged.size}",
        "largest_residual": _number(jnp.max(steps.residual)),
        "iterations": summary(steps.num_steps),
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
