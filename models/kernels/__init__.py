"""Kernels in C for x86 processors with 16-bit products, and what compiles and loads them."""
