"""Conversion of weights, with a proof: begin at `conversion`."""
