"""What is computed: the image tower, the text tower and the dual encoder that joins them."""
