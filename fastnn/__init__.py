"""fastnn: fast, accurate and reproducible CPU kernels for neural-network activations and normalization."""
