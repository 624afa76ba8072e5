"""Encoding and decoding of frames, headers and bodies, and the limits of received data. Pure: no I/O, clock or random numbers."""
