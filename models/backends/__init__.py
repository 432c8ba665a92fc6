"""Who does the arithmetic: torch's operations everywhere, our own kernels where a CPU has 16-bit products."""
