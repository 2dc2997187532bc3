"""What people watch while it runs: the progress line and TensorBoard panels."""
