"""Glue to transformers' generation: an optimised model brings its own cache and leaves the rest to generate()."""
