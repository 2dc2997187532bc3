"""Class names, templates and class subsets of the public zero-shot tests, out of published packages."""
