"""One file, one family. `diffusion_adapters.adapter` holds the contract; copy `lora.py` to begin a new one."""
