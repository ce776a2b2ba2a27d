"""The definition of every op in plain torch, with shape suffixes: slow, short, and what the tests compare with."""
