"""Devices: the lease of a GPU, copies to and from it, and errors that say that memory is short."""
