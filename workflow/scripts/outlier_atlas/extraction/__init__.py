"""From tokens to activations: devices, the traced forward pass, the overlapped loop."""
