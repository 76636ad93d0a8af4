"""How large activations are: by layer, and by channel."""
