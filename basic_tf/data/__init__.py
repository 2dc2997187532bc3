"""What is read, in which order, and as which batch."""
