"""Who does the arithmetic: torch's operations everywhere, our own kernels where the processor has 16-bit products."""
