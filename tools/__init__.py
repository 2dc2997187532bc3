"""Programs that prepare data, train tokenizers and measure: `python tools/NAME.py` from the root."""
