"""Losses equal PyTorch's where it has them, and hand-worked constants elsewhere."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from torch.nn import functional

from histojax.core.errors import RunError
from histojax.training import build, losses, tasks
from histojax.training.default_config import base

B, K = 7, 4
ONES = jnp.ones(K)
ALL = jnp.ones(B, bool)
WEIGHTS = jnp.array([0.4, 1.0, 1.6, 2.5])


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 3, (B, K)), jnp.float32), jnp.asarray(rng.integers(0, K, B), jnp.int32)


def mean(logits, targets, mask, weights, gamma=None):
    """The loss as a task forms it: the masked sum divided by the masked weight, once."""
    if gamma is None:
        values = losses.cross_entropy(logits, targets, weights)
    else:
        values = losses.focal(logits, targets, weights, gamma)
    return jnp.sum(values * mask) / jnp.sum(losses.target_weight(targets, weights) * mask)


def sum_of(loss):
    return lambda *arguments: jnp.sum(loss(*arguments))


def torch_mean(logits, targets, **options):
    logits = torch.tensor(np.asarray(logits), requires_grad=True)
    loss = functional.cross_entropy(logits, torch.tensor(np.asarray(targets)), **options)
    loss.backward()
    return loss.item(), logits.grad.numpy()


def soft_targets(seed=1):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(K), B), jnp.float32)


CASES = {
    "hard labels": (0.0, ONES, {}),
    "class weights": (0.0, WEIGHTS, {"weight": torch.tensor(np.asarray(WEIGHTS))}),
    "label smoothing": (0.1, ONES, {"label_smoothing": 0.1}),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_pytorchs(name):
    smoothing, weights, options = CASES[name]
    logits, labels = batch()
    targets = losses.smooth_one_hot(labels, K, smoothing)
    ours, gradient = jax.value_and_grad(mean)(logits, targets, ALL, weights)
    theirs, their_gradient = torch_mean(logits, np.asarray(labels, np.int64), **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-5, atol=1e-7)


def test_soft_targets_are_pytorchs():
    logits, targets = batch()[0], soft_targets()
    ours, gradient = jax.value_and_grad(mean)(logits, targets, ALL, ONES)
    theirs, their_gradient = torch_mean(logits, targets)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-5, atol=1e-7)


def test_smooth_one_hot_by_hand():
    got = losses.smooth_one_hot(jnp.array([1]), 4, 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)
    assert got.dtype == jnp.float32


def test_target_weight_by_hand():
    targets = jnp.array([[1, 0], [0.25, 0.75], [0, 1]], jnp.float32)
    # 1·2; 0.25·2 + 0.75·4; the third image is padding
    assert losses.target_weight(targets, jnp.array([2.0, 4.0])).tolist() == [2, 3.5, 4]
    task = tasks.Multiclass(("a", "b"), (2.0, 4.0))
    assert float(task.loss_weight(targets, jnp.array([True, True, False]))) == 5.5


def test_focal_without_gamma_is_cross_entropy():
    logits, targets = batch()[0], soft_targets()
    focal, gradient = jax.value_and_grad(mean)(logits, targets, ALL, WEIGHTS, 0.0)
    plain, plain_gradient = jax.value_and_grad(mean)(logits, targets, ALL, WEIGHTS)
    np.testing.assert_allclose(focal, plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-7)


def test_focal_by_hand():
    # Logits log 3 and 0: p = (3/4, 1/4). Class 0: (1/4)² log(4/3) = 0.01798013; class 1: (3/4)² log 4 = 0.7797906
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    got = losses.focal(logits, jnp.eye(2), jnp.ones(2), 2.0)
    np.testing.assert_allclose(got, [0.01798013, 0.7797906], rtol=1e-5)
    # Weights 1 and 3, both images: (0.01798013 + 3·0.7797906) / 4
    got = mean(logits, jnp.eye(2), jnp.array([True, True]), jnp.array([1.0, 3.0]), 2.0)
    np.testing.assert_allclose(got, 0.5893380, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("far", [20.0, 200.0, 1e4, 1e30])
@pytest.mark.parametrize("right", [True, False], ids=["p=1", "p=0"])
def test_focal_at_the_ends_has_a_finite_gradient(gamma, far, right):
    # From 20 on, the greater probability is 1 in float32, so that 1 - p is 0.
    logits = jnp.array([[far, 0.0]])
    targets = jnp.array([[1.0, 0.0]] if right else [[0.0, 1.0]])
    value, gradient = jax.value_and_grad(sum_of(losses.focal))(logits, targets, jnp.ones(2), gamma)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 0.0 if right else far, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("far", [1e4, 1e30])
def test_cross_entropy_of_extreme_logits_is_finite(far):
    logits = jnp.array([[far, 0, -far], [-far, far, 0]], jnp.float32)
    for labels in ([0, 1], [2, 0]):
        targets = losses.smooth_one_hot(jnp.array(labels), 3)
        value, gradient = jax.value_and_grad(sum_of(losses.cross_entropy))(logits, targets, jnp.ones(3))
        np.testing.assert_allclose(value, 0.0 if labels == [0, 1] else 4 * far, rtol=1e-6)
        assert np.isfinite(gradient).all()


def test_narrow_logits_are_computed_in_float32():
    logits, labels = batch()
    narrow = jnp.asarray(logits, jnp.bfloat16)
    targets = losses.smooth_one_hot(labels, K)
    for got, wide in (
        (mean(narrow, targets, ALL, ONES), mean(narrow.astype(jnp.float32), targets, ALL, ONES)),
        (mean(narrow, targets, ALL, ONES, 2.0), mean(narrow.astype(jnp.float32), targets, ALL, ONES, 2.0)),
    ):
        assert got.dtype == jnp.float32
        assert got == wide


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_masked_is_subset(gamma):
    logits, targets = batch()[0], soft_targets()
    mask = jnp.array([True, False, True, True, False, True, False])
    logits = jnp.where(mask[:, None], logits, 1e30)  # the padding's content must not matter
    masked = mean(logits, targets, mask, WEIGHTS, gamma)
    subset = mean(logits[mask], targets[mask], mask[mask], WEIGHTS, gamma)
    np.testing.assert_allclose(masked, subset, rtol=1e-6)
    gradient = jax.grad(mean)(logits, targets, mask, WEIGHTS, gamma)
    assert not np.asarray(gradient)[~np.asarray(mask)].any()


def test_gradients_of_cross_entropy_match_finite_differences():
    logits, targets = batch()[0], soft_targets()
    check_grads(
        lambda x: losses.cross_entropy(jnp.asarray(x), targets, WEIGHTS), (logits,), order=1, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_of_focal_match_finite_differences(gamma):
    # Close to each other, so that no probability is near 1, where float32 differences are rounding.
    logits, targets = batch()[0] / 3, soft_targets()
    check_grads(
        lambda x: losses.focal(jnp.asarray(x), targets, WEIGHTS, gamma), (logits,), order=1, atol=1e-2, rtol=1e-2
    )


def class_weights(kind, counts, beta=0.999):
    """The weights of the task that a config describes."""
    config = base()
    config.loss.class_weights, config.loss.class_balanced_beta = kind, beta
    return np.array(build.task(config, [f"class{i}" for i in range(len(counts))], counts, sum(counts)).class_weights)


def test_class_weights_by_hand():
    assert class_weights("none", [5, 1, 94]).tolist() == [1, 1, 1]
    # 1/10 and 1/30, divided by their mean 1/15
    np.testing.assert_allclose(class_weights("inverse", [10, 30]), [1.5, 0.5], rtol=1e-6)
    # β = 1/2: (1/2)/(1 - 1/2) = 1 and (1/2)/(1 - 1/4) = 2/3, divided by their mean 5/6
    np.testing.assert_allclose(class_weights("class_balanced", [1, 2], 0.5), [1.2, 0.8], rtol=1e-6)


@pytest.mark.parametrize("kind", ["none", "inverse", "class_balanced"])
@pytest.mark.parametrize("beta", [0.9, 0.999, 0.999999])
def test_class_weights_have_mean_one(kind, beta):
    weights = class_weights(kind, [3, 400, 70, 5429], beta)
    assert (weights == weights.astype(np.float32)).all()
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    assert (weights > 0).all()
    # Rarer classes never weigh less.
    assert (np.diff(weights[[0, 2, 1, 3]]) <= 0).all()


def test_class_balanced_approaches_none_and_inverse():
    counts = [20, 300]
    small = class_weights("class_balanced", counts, 1e-6)
    np.testing.assert_allclose(small, class_weights("none", counts), rtol=1e-5)
    large = class_weights("class_balanced", counts, 1 - 1e-9)
    np.testing.assert_allclose(large, class_weights("inverse", counts), rtol=1e-5)


def test_unknown_class_weights_are_refused():
    with pytest.raises(RunError, match=r"loss\.class_weights='inverted' is not one of none, inverse, class_balanced"):
        class_weights("inverted", [1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_name": "hinge"}, r"loss\.name='hinge' is not one of cross_entropy, focal"),
        ({"label_smoothing": 1.0}, r"loss\.label_smoothing=1\.0 is not in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"loss\.label_smoothing=-0\.1"),
    ],
)
def test_a_task_refuses_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.Multiclass(("a", "b"), (1.0, 1.0), **options)


@pytest.mark.parametrize("name", tasks.Multiclass.LOSSES)
def test_a_task_uses_its_loss_and_validates_without_smoothing(name):
    logits, labels = batch()
    task = tasks.Multiclass(("a", "b", "c", "d"), tuple(WEIGHTS.tolist()), name, label_smoothing=0.3, focal_gamma=1.5)
    gamma = 1.5 if name == "focal" else None
    targets = task.targets(labels)
    np.testing.assert_array_equal(targets, losses.smooth_one_hot(labels, K, 0.3))
    got = task.loss_sum(logits, targets, ALL) / task.loss_weight(targets, ALL)
    np.testing.assert_allclose(got, mean(logits, targets, ALL, WEIGHTS, gamma), rtol=1e-6)
    sums = task.evaluation_sums(logits, labels, ALL)
    hard = losses.smooth_one_hot(labels, K)
    np.testing.assert_allclose(
        sums["loss_sum"] / sums["loss_weight"], mean(logits, hard, ALL, WEIGHTS, gamma), rtol=1e-6
    )
    np.testing.assert_allclose(task.probabilities(logits).sum(-1), np.ones(B), rtol=1e-6)


def test_confusion_counts_true_in_rows_and_padding_nowhere():
    task = tasks.Multiclass(("a", "b", "c"), (1.0, 1.0, 1.0))
    logits = jnp.eye(3)[jnp.array([0, 2, 2, 1])]
    sums = task.evaluation_sums(logits, jnp.array([0, 1, 1, 1]), jnp.array([True, True, True, False]))
    assert sums["confusion"].tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_class_balanced_weights_need_a_beta_between_0_and_1(beta):
    with pytest.raises(RunError, match=rf"loss\.class_balanced_beta={beta} is not in \(0, 1\)"):
        class_weights("class_balanced", [3, 5], beta)


# ---- Several labels -------------------------------------------------------------------------------------------------

POSITIVE_WEIGHTS = jnp.array([0.5, 1.0, 3.0, 7.0])


def label_batch(seed=0):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (B, K)), rng.integers(0, 2, (B, K))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)


def label_mean(logits, targets, mask, weights, *shape):
    """The loss as a task forms it: the masked sum divided by images times labels, once."""
    return jnp.sum(losses.asymmetric(logits, targets, weights, *shape) * mask) / (K * jnp.sum(mask))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_cross_entropy_is_pytorchs(smoothing):
    logits, labels = label_batch()
    targets = losses.smooth_labels(labels, smoothing)
    ours, gradient = jax.value_and_grad(label_mean)(logits, targets, ALL, POSITIVE_WEIGHTS)
    x = torch.tensor(np.asarray(logits), requires_grad=True)
    theirs = functional.binary_cross_entropy_with_logits(
        x, torch.tensor(np.asarray(targets)), pos_weight=torch.tensor(np.asarray(POSITIVE_WEIGHTS))
    )
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert smoothing == 0 or targets.min() == pytest.approx(0.1)


def reference_asymmetric(logits, targets, gamma_positive, gamma_negative, margin):
    """Equations 4 to 6 of Ridnik et al. 2021, in float64, written as they stand there."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    p_m = np.maximum(p - margin, 0)
    positive = (1 - p) ** gamma_positive * np.log(p)
    negative = p_m**gamma_negative * np.log(1 - p_m)
    targets, weights = np.asarray(targets, np.float64), np.asarray(POSITIVE_WEIGHTS, np.float64)
    return -(targets * weights * positive + (1 - targets) * negative).mean()


@pytest.mark.parametrize("shape", [(2.0, 2.0, 0.0), (0.0, 4.0, 0.05), (1.0, 4.0, 0.2), (0.5, 0.5, 0.0)])
def test_focal_and_asymmetric_are_the_papers(shape):
    logits, labels = label_batch(1)
    ours = label_mean(logits, labels, ALL, POSITIVE_WEIGHTS, *shape)
    np.testing.assert_allclose(ours, reference_asymmetric(logits, labels, *shape), rtol=2e-6)


@pytest.mark.parametrize("shape", [(0.0, 0.0, 0.0), (2.0, 2.0, 0.0), (0.5, 0.5, 0.0), (0.0, 4.0, 0.05)])
def test_saturated_logits_leave_loss_and_gradient_finite(shape):
    logits = jnp.array([[200.0, -200.0, 200.0, -200.0]])
    labels = jnp.array([[1.0, 1.0, 0.0, 0.0]])
    loss, gradient = jax.value_and_grad(label_mean)(logits, labels, ALL[:1], POSITIVE_WEIGHTS, *shape)
    assert np.isfinite(loss)
    assert loss > 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(0.0, 0.0, 0.0), (2.0, 2.0, 0.0), (0.5, 4.0, 0.05)])
def test_gradients_of_asymmetric_match_finite_differences(shape):
    # Close to 0, so that no probability is near the margin, where the loss has a kink, or near 1.
    logits, labels = label_batch()
    targets = losses.smooth_labels(labels, 0.2)
    check_grads(
        lambda x: losses.asymmetric(jnp.asarray(x), targets, POSITIVE_WEIGHTS, *shape),
        (logits / 4,),
        order=2,
        atol=1e-2,
        rtol=1e-2,
    )


@pytest.mark.parametrize("name", tasks.Multilabel.LOSSES)
def test_padding_counts_nowhere_and_validation_is_not_smoothed(name):
    logits, labels = label_batch(2)
    task = tasks.Multilabel(("a", "b", "c", "d"), tuple(POSITIVE_WEIGHTS.tolist()), name, label_smoothing=0.3)
    mask = jnp.array([True] * 4 + [False] * 3)
    padded, part = (task.evaluation_sums(logits[:n], labels[:n], mask[:n]) for n in (B, 4))
    assert padded.keys() == {"loss_sum", "loss_weight"}
    for key in padded:
        np.testing.assert_allclose(padded[key], part[key], rtol=1e-6)
    assert part["loss_weight"] == 4 * K
    np.testing.assert_allclose(
        task.num_correct(logits, labels, mask), task.num_correct(logits[:4], labels[:4], ALL[:4])
    )
    shape = {"cross_entropy": (), "focal": (2.0, 2.0), "asymmetric": (0.0, 4.0, 0.05)}[name]
    values = losses.asymmetric(logits[:4], labels[:4], POSITIVE_WEIGHTS, *shape)
    np.testing.assert_allclose(part["loss_sum"], values.sum(), rtol=1e-6)
    np.testing.assert_array_equal(task.targets(labels), losses.smooth_labels(labels, 0.3))


def test_an_image_counts_by_its_fraction_of_correct_labels():
    task = tasks.Multilabel(("a", "b"), (1.0, 1.0))
    logits = jnp.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert float(task.num_correct(logits, labels, jnp.ones(3, bool))) == 1.5
    np.testing.assert_allclose(task.probabilities(jnp.zeros((1, 2))), [[0.5, 0.5]])


def positive_weights(kind, positives, images):
    """The weights of the task that a config describes."""
    config = base()
    config.data.task, config.loss.positive_weights = "multilabel", kind
    return np.array(build.task(config, [f"l{i}" for i in range(len(positives))], positives, images).positive_weights)


def test_balanced_positives_weigh_as_much_as_negatives():
    weights = positive_weights("balanced", [10, 50, 80], 100)
    np.testing.assert_allclose(weights * [10, 50, 80], [90, 50, 20], rtol=1e-6)
    np.testing.assert_array_equal(positive_weights("none", [0, 5], 5), [1, 1])


@pytest.mark.parametrize("positives", [[0, 3], [5, 3]])
def test_a_label_that_no_or_every_image_carries_cannot_be_balanced(positives):
    with pytest.raises(
        RunError, match=r"loss\.positive_weights=balanced: of 5 .* needs images with it and images with"
    ):
        positive_weights("balanced", positives, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_name": "hinge"}, r"loss\.name='hinge' is not one of cross_entropy, focal, asymmetric"),
        ({"label_smoothing": 1.0}, r"loss\.label_smoothing=1\.0"),
        ({"asymmetric": (0.0, -1.0, 0.05)}, r"loss\.asymmetric"),
        ({"asymmetric": (0.0, 1.0, 1.0)}, r"loss\.asymmetric"),
    ],
)
def test_a_multilabel_task_refuses_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.Multilabel(("a", "b"), (1.0, 1.0), **options)


def test_unknown_positive_weights_are_refused():
    with pytest.raises(RunError, match=r"loss\.positive_weights='inverse' is neither 'none' nor 'balanced'"):
        positive_weights("inverse", [1, 2], 5)


def test_shapes_are_checked_in_tests():
    """The annotations hold in tests (`--jaxtyping-packages` in pyproject.toml)."""
    logits, targets = batch()[0], soft_targets()
    losses.cross_entropy(logits, targets, WEIGHTS)
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.cross_entropy(logits, targets[:-1], WEIGHTS)
    with pytest.raises(jaxtyping.TypeCheckError):
        tasks.Multiclass(tuple("abcd"), (1.0,) * 4).loss_sum(logits, targets, ALL[:-1])
