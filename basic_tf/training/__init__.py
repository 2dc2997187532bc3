"""How it learns: stages, the trainer on orbit, checkpoints, safe stopping."""
