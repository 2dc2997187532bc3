"""What a trained model can do: zero-shot classification, retrieval, reports."""
