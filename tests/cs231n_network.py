"""The CS231n assignments' layers in plain NumPy, and their fully-connected network over any such set of layers."""

from itertools import pairwise

import numpy as np


class Plain:
    """What a student's layers.py computes, from the formulas of the lecture."""

    @staticmethod
    def affine_forward(x, w, b):
        return x.reshape(len(x), -1).dot(w) + b, (x, w, b)

    @staticmethod
    def affine_backward(dout, cache):
        x, w, _ = cache
        return dout.dot(w.T).reshape(x.shape), x.reshape(len(x), -1).T.dot(dout), dout.sum(0)

    @staticmethod
    def relu_forward(x):
        return np.maximum(x, 0), x

    @staticmethod
    def relu_backward(dout, x):
        return dout * (x > 0)

    @staticmethod
    def normalize(x, gamma, beta, eps, axes):
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        xhat = (x - mean) / np.sqrt(var + eps)
        return gamma * xhat + beta, (xhat, gamma, var + eps, axes)

    @staticmethod
    def normalize_backward(dout, cache, param_axes):
        xhat, gamma, var, axes = cache
        g = dout * gamma
        dx = (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True)) / np.sqrt(var)
        return dx, (dout * xhat).sum(param_axes), dout.sum(param_axes)

    @classmethod
    def batchnorm_forward(cls, x, gamma, beta, bn_param):
        eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
        running_mean = bn_param.get("running_mean", np.zeros(x.shape[1], x.dtype))
        running_var = bn_param.get("running_var", np.zeros(x.shape[1], x.dtype))
        cache = None
        if bn_param["mode"] == "train":
            out, cache = cls.normalize(x, gamma, beta, eps, (0,))
            running_mean = momentum * running_mean + (1 - momentum) * x.mean(0)
            running_var = momentum * running_var + (1 - momentum) * x.var(0)
        else:
            out = gamma * (x - running_mean) / np.sqrt(running_var + eps) + beta
        bn_param["running_mean"], bn_param["running_var"] = running_mean, running_var
        return out, cache

    @classmethod
    def batchnorm_backward(cls, dout, cache):
        return cls.normalize_backward(dout, cache, 0)

    @classmethod
    def layernorm_forward(cls, x, gamma, beta, ln_param):
        return cls.normalize(x, gamma, beta, ln_param.get("eps", 1e-5), (1,))

    @classmethod
    def layernorm_backward(cls, dout, cache):
        return cls.normalize_backward(dout, cache, 0)

    @classmethod
    def spatial_batchnorm_forward(cls, x, gamma, beta, bn_param):
        rows, cache = cls.batchnorm_forward(x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]), gamma, beta, bn_param)
        n, c, h, w = x.shape
        return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2), cache

    @classmethod
    def spatial_batchnorm_backward(cls, dout, cache):
        n, c, h, w = dout.shape
        dx, dgamma, dbeta = cls.batchnorm_backward(dout.transpose(0, 2, 3, 1).reshape(-1, c), cache)
        return dx.reshape(n, h, w, c).transpose(0, 3, 1, 2), dgamma, dbeta

    @classmethod
    def spatial_groupnorm_forward(cls, x, gamma, beta, G, gn_param):
        n, c, h, w = x.shape
        gamma5, beta5 = (v.reshape(1, G, c // G, 1, 1) for v in (gamma, beta))
        out, cache = cls.normalize(x.reshape(n, G, c // G, h, w), gamma5, beta5, gn_param.get("eps", 1e-5), (2, 3, 4))
        return out.reshape(x.shape), cache

    @classmethod
    def spatial_groupnorm_backward(cls, dout, cache):
        split = cache[0].shape
        dx, dgamma, dbeta = cls.normalize_backward(dout.reshape(split), cache, (0, 3, 4))
        return dx.reshape(dout.shape), dgamma.reshape(1, -1, 1, 1), dbeta.reshape(1, -1, 1, 1)

    @staticmethod
    def dropout_forward(x, dropout_param):
        if "seed" in dropout_param:
            np.random.seed(dropout_param["seed"])  # noqa: NPY002
        if dropout_param["mode"] == "test":
            return x, (dropout_param, None)
        mask = (np.random.rand(*x.shape) < dropout_param["p"]) / dropout_param["p"]  # noqa: NPY002
        return (x * mask).astype(x.dtype, copy=False), (dropout_param, mask)

    @staticmethod
    def dropout_backward(dout, cache):
        return dout if cache[1] is None else dout * cache[1]

    @staticmethod
    def softmax_loss(x, y):
        p = np.exp(x - x.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(x)), y]).mean()
        p[np.arange(len(x)), y] -= 1
        return loss, p / len(x)

    @staticmethod
    def svm_loss(x, y):
        loss, dx = 0.0, np.zeros_like(x)
        for i, label in enumerate(y):
            for j in range(x.shape[1]):
                if j != label and (margin := x[i, j] - x[i, label] + 1) > 0:
                    loss += margin
                    dx[i, j] += 1
                    dx[i, label] -= 1
        return loss / len(x), dx / len(x)


class Network:
    """The assignment's FullyConnectedNet over a set of layers, with random data and plain SGD."""

    def __init__(self, layers, normalization, keep, dtype, samples=120, sizes=(48, 40, 30, 5), rate=0.3):
        rng = np.random.default_rng(0)
        self.layers, self.normalization, self.keep, self.rate = layers, normalization, keep, rate
        self.X = rng.standard_normal((samples, 3, 4, sizes[0] // 12)).astype(dtype)
        self.y = rng.integers(0, sizes[-1], samples)
        self.params = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
            self.params[f"W{i}"] = (rng.standard_normal((fan_in, fan_out)) * 0.1).astype(dtype)
            self.params[f"b{i}"] = np.zeros(fan_out, dtype)
            if normalization and i < 3:
                self.params[f"gamma{i}"], self.params[f"beta{i}"] = np.ones(fan_out, dtype), np.zeros(fan_out, dtype)
        self.norm_params = [{}, {}]
        self.dropout_param = {"p": keep, "seed": 3}

    def forward(self, mode, caches):
        x, params, layers = self.X, self.params, self.layers
        self.dropout_param["mode"] = mode
        for i in (1, 2):
            x, cache = layers.affine_forward(x, params[f"W{i}"], params[f"b{i}"])
            caches.append(cache)
            if self.normalization:
                norm_param = self.norm_params[i - 1]
                norm_param["mode"] = mode
                norm = getattr(layers, f"{self.normalization}_forward")
                x, cache = norm(x, params[f"gamma{i}"], params[f"beta{i}"], norm_param)
                caches.append(cache)
            x, cache = layers.relu_forward(x)
            caches.append(cache)
            if self.keep < 1:
                x, cache = layers.dropout_forward(x, self.dropout_param)
                caches.append(cache)
        x, cache = layers.affine_forward(x, params["W3"], params["b3"])
        caches.append(cache)
        return x

    def scores(self):
        """The network's output at test time."""
        return self.forward("test", [])

    def step(self):
        """One training step; its loss."""
        layers, caches, gradients = self.layers, [], {}
        loss, dout = layers.softmax_loss(self.forward("train", caches), self.y)
        for i in (3, 2, 1):
            if i < 3:
                if self.keep < 1:
                    dout = layers.dropout_backward(dout, caches.pop())
                dout = layers.relu_backward(dout, caches.pop())
                if self.normalization:
                    backward = getattr(layers, f"{self.normalization}_backward")
                    dout, gradients[f"gamma{i}"], gradients[f"beta{i}"] = backward(dout, caches.pop())
            dout, gradients[f"W{i}"], gradients[f"b{i}"] = layers.affine_backward(dout, caches.pop())
        for key, gradient in gradients.items():
            self.params[key] -= self.rate * gradient
        return loss
