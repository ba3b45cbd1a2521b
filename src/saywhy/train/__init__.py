"""The only training loop, on accelerate, and the folder it leaves."""
