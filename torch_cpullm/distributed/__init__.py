"""Ranks that compute one model together: start-up, and the groups they talk through."""
