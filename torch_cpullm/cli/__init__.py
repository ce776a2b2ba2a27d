"""The command `torch-cpullm`."""
