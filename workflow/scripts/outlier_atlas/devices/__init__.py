"""Devices: leases of GPUs, copies to and from a device, and errors for lack of memory."""
