"""Times whole models: ours in each format, stock, and the peers that are installed."""
