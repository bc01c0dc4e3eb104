"""The libraries that fastnn is compared with. Each is imported only when it is loaded."""

from __future__ import annotations

from fastnn.bench.peers.base import Peer
from fastnn.bench.peers.expressions import Numba, NumExpr
from fastnn.bench.peers.numpy_idioms import NumPy, SciPy
from fastnn.bench.peers.onednn import OneDNN
from fastnn.bench.peers.pytorch import Torch
from fastnn.bench.peers.xla import Jax

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (NumPy, SciPy, NumExpr, Numba, Torch, Jax, OneDNN)}

__all__ = ["PEERS", "Peer"]
