"""Who can run a checkpoint: one file for each engine, all of one shape, so that each is asked the same."""
