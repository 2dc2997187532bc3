"""What every tools/prepare_*.py needs: fetching, rendering, choosing by hash, held-out names, duplicates."""
