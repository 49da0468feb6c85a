"""From trained weights to few bits: rounding by row, quantization-aware training, bit allocation."""
