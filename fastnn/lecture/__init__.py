"""The lecture "Training Neural Networks" as software: a small network package, and an experiment for each claim.

``python -m fastnn lecture`` runs the experiments; the package itself is for those who want to try their own::

    import fastnn
    from fastnn.lecture import Network, digits, train

    data = digits()
    network = Network.mlp([data.features, 100, 100, data.classes], fastnn, activation="relu", batch_norm=True, rng=0)
    train(network, data.x, data.labels, epochs=5, lr=0.1, rng=0)
    print(network.accuracy(data.test_x, data.test_labels))

scikit-learn brings the digits, the experiments also need matplotlib and rich: ``pip install ".[lecture]"`` in a
checkout.
"""

from fastnn.lecture.backend import BACKENDS
from fastnn.lecture.data import Data, cifar10, digits
from fastnn.lecture.errors import LectureError
from fastnn.lecture.layers import Activation, BatchNorm, Dense, Layer
from fastnn.lecture.network import SGD, History, Network, train

__all__ = [
    "BACKENDS",
    "SGD",
    "Activation",
    "BatchNorm",
    "Data",
    "Dense",
    "History",
    "Layer",
    "LectureError",
    "Network",
    "cifar10",
    "digits",
    "train",
]
