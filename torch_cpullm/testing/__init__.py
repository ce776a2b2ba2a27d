"""What tests and benches share: bounds from formulas, page pools, tiny models."""
