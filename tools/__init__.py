"""Programs that prepare data, train tokenizers and measure; run as `python tools/NAME.py` from the project's root."""
