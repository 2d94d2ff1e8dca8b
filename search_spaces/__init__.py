"""What is searched: one small module per space."""
