"""The generated parts of docs/results/*.md."""
