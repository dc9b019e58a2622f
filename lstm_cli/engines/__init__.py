"""Engines, which compute layers: the protocols, and the engines reference, jit and cuda."""
