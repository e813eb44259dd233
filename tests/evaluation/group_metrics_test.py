import numpy as np

from histojax.evaluation import group_metrics


def test_group_scores_by_hand():
    # Group 0 (label 0): 2 of 3 right. Group 1 (label 1): a tie that the mean probability decides for 1.
    # Group 2 (label 1): the vote says 0, the mean probability 1. Group 3 carries both labels.
    right = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4], [0.0, 1.0]]
    p = np.array([*right, [0.9, 0.1], [0.9, 0.1]])
    true, group = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    scores = group_metrics.group_scores(true, p, group, 4)
    assert scores.n_images.tolist() == [3, 2, 3, 2]
    assert scores.label.tolist() == [0, 1, 1, -1]
    assert scores.majority.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(scores.fraction_correct, [2 / 3, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(group_metrics.recognition_rate(scores), 0.5)
    np.testing.assert_allclose(group_metrics.majority_accuracy(scores), 2 / 3)
    np.testing.assert_allclose(group_metrics.mean_probability_accuracy(scores), 1.0)
    weights = np.array([[0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_allclose(group_metrics.recognition_rate(scores, weights), [4 / 9, 1 / 2])
    np.testing.assert_allclose(group_metrics.majority_accuracy(scores, weights), [2 / 3, np.nan])
