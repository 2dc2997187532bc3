"""BASIC's claims studied at a size that anyone can rerun: what is run, and what it says (docs/results/study.md)."""
