"""Heads on fixed features: equal to scikit-learn, to PyTorch's optimizers, and to the published protocols' rules."""

import numpy as np
import optax
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histojax.studies.probe import heads, published
from histojax.studies.probe.heads import Problem


def _problem(n: int = 90, width: int = 6, n_classes: int = 3, signal: float = 1.0) -> Problem:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(n) % n_classes)
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[np.arange(n), labels] += signal
    train, val, test = np.split(np.arange(n), [n // 2, 2 * n // 3])
    return Problem(x, labels, n_classes, train, test, [(train, val)])


def _logistic(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000))


def test_logistic_regression_takes_the_best_penalty_of_validation() -> None:
    problem = _problem()
    x, labels, ((train, val),) = problem.features, problem.labels, problem.choosing
    losses = {}
    for strength in heads.C_GRID:
        p = _logistic(strength).fit(x[train], labels[train]).predict_proba(x[val])
        weights = 1 / np.bincount(labels[val])[labels[val]]
        losses[strength] = log_loss(labels[val], p, sample_weight=weights)
    best = min(losses, key=losses.__getitem__)
    found, choice = heads.linear(problem)
    assert choice == {"C": best}
    assert best not in (heads.C_GRID[0], heads.C_GRID[-1])
    expected = _logistic(best).fit(x[train], labels[train]).predict_proba(x[problem.test])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert heads.linear(problem, C=3.0)[1] == {"C": 3.0}


def test_neighbours_vote_as_in_scikit_learn_and_k_is_the_first_best() -> None:
    problem = _problem()
    x, labels, ((train, val),) = problem.features, problem.labels, problem.choosing
    scores = {}
    for k in (k for k in heads.K_GRID if k <= len(train)):
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x[train], labels[train])
        votes = model.predict_proba(x[problem.test])
        np.testing.assert_allclose(heads.neighbour_votes(x[train], labels[train], x[problem.test], 3, k), votes)
        scores[k] = f1_score(labels[val], model.predict_proba(x[val]).argmax(1), average="macro")
    assert heads.knn(problem)[1] == {"k": max(scores, key=scores.__getitem__)}


def test_the_smallest_class_wins_a_tie() -> None:
    train = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    votes = heads.neighbour_votes(train, np.array([2, 1, 0]), np.array([[2.0, 0.1]]), 3, 2)
    np.testing.assert_array_equal(votes, [[0, 0.5, 0.5]])
    assert votes.argmax(1) == [1]


def test_support_sets_follow_the_rule_word_by_word() -> None:
    problem = _problem(signal=0.5)
    x = problem.features.astype(np.float64)
    rng = np.random.default_rng(0)
    sets = np.stack(
        [[rng.choice(np.flatnonzero(problem.labels == c), 4, replace=False) for c in range(3)] for _ in range(60)]
    )
    found = heads.support_set_classes(x, sets, x[problem.test])
    for i, chosen in enumerate(sets):
        mean = x[chosen.ravel()].mean(0)
        centres = [(x[of_class] - mean).mean(0) for of_class in chosen]
        for j, query in enumerate(x[problem.test] - mean):
            cosines = [query @ c / np.linalg.norm(query) / np.linalg.norm(c) for c in centres]
            assert found[i, j] == int(np.argmax(cosines))
    votes, choice = heads.simpleshot(problem, seed=4)
    assert choice == {"shots": min(16, np.bincount(problem.labels[problem.train]).min())}
    assert votes.shape == (len(problem.test), 3)
    np.testing.assert_allclose(votes.sum(1), 1)
    assert (votes.argmax(1) == problem.labels[problem.test]).mean() > 0.4


@pytest.mark.parametrize("coupled", [True, False])
def test_descent_is_that_of_pytorch(coupled: bool) -> None:
    problem, settings = _problem(n=40), np.array([(1e-2, 1e-1), (1e-3, 0.0)], np.float32)
    x, labels = problem.features[:22], problem.labels[:22]
    orders = np.stack([published.batches(22, 8, 9, seed) for seed in (0, 1)])
    start = published._initial(6, 3, 2, seed=0)

    def rule(rate, decay):
        adam = optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))
        return adam if coupled else optax.adamw(rate, weight_decay=decay)

    trained = published.descend(x, labels, orders, settings, start, rule, keep_every=3)
    assert trained.kernels.shape == (3, 2, 6, 3)
    for head, (rate, decay) in enumerate(settings.tolist()):
        linear = torch.nn.Linear(6, 3)
        linear.weight.data = torch.tensor(np.asarray(start["kernel"][head]).T.copy())
        linear.bias.data = torch.tensor(np.asarray(start["bias"][head]))
        kind = torch.optim.Adam if coupled else torch.optim.AdamW
        optimizer = kind(linear.parameters(), lr=rate, weight_decay=decay)
        for step, order in enumerate(orders[head]):
            order = order[order >= 0]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(torch.tensor(x[order])), torch.tensor(labels[order])).backward()
            optimizer.step()
            if step % 3 == 2:
                kernel = linear.weight.detach().numpy().T
                np.testing.assert_allclose(trained.kernels[step // 3, head], kernel, atol=1e-5)
                np.testing.assert_allclose(trained.biases[step // 3, head], linear.bias.detach().numpy(), atol=1e-5)


def test_batches_show_every_image_once_per_epoch() -> None:
    orders = published.batches(10, 4, 7, seed=0)
    assert orders.shape == (7, 4)
    for epoch in (orders[:3], orders[3:6]):
        assert sorted(epoch[epoch >= 0].tolist()) == list(range(10))
    assert (orders[2] >= 0).sum() == 2
    assert (orders[:3] != orders[3:6]).any()


def test_published_linear_heads_choose_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem(signal=3.0)
    monkeypatch.setattr(published, "THUNDER_EPOCHS", 4)
    kept = []
    descend = published.descend
    monkeypatch.setattr(published, "descend", lambda *args, **kwargs: kept.append(descend(*args, **kwargs)) or kept[-1])
    probabilities, choice = published.thunder_linear(problem)
    (trained,), ((_, val),) = kept, problem.choosing
    best, setting = -1.0, ()
    for epoch in range(4):
        for head, (rate, decay) in enumerate((r, d) for r in (1e-3, 1e-4, 1e-5) for d in (0.0, 1e-3, 1e-4)):
            logits = problem.features[val] @ trained.kernels[epoch, head] + trained.biases[epoch, head]
            score = f1_score(problem.labels[val], logits.argmax(1), average="macro")
            if score > best:
                best, setting = score, (rate, decay, epoch + 1, head)
    assert (choice["rate"], choice["decay"], choice["epoch"]) == setting[:3]
    logits = problem.features[problem.test] @ trained.kernels[setting[2] - 1, setting[3]]
    logits += trained.biases[setting[2] - 1, setting[3]]
    np.testing.assert_allclose(probabilities, torch.softmax(torch.tensor(logits), 1).numpy(), atol=1e-5)
    monkeypatch.setattr(published, "EVA_RATE", 0.01)
    runs = published.eva_linear(problem, steps=300)
    assert len(runs) == 5
    assert len({run[0].tobytes() for run in runs}) == 5
    assert all((p.argmax(1) == problem.labels[problem.test]).mean() > 0.5 for p, _ in runs)
