"""What replaces the originals. swap.py is the only file that changes the user's model."""
