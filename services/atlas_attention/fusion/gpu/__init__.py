"""Blending and fusion on a GPU: the CPU's arithmetic in CUDA, the same results to the bit."""
