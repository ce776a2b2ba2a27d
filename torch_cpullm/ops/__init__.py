"""Front of torch.ops.torch_cpullm.*: signatures, docstrings and fake kernels, one family per file."""
