"""The bundled model, its training, and `make demo`."""
