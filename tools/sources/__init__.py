"""What every tools/prepare_*.py needs: fetching packages, rendering pictures, keeping held-out names out of texts."""
