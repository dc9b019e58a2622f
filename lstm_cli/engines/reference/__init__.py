"""The reference engine: NumPy, one step after another, with the equations of the cells.

``step.py`` computes the gates of one step. ``recurrent.py`` runs the steps of a layer, and
``backward.py`` differentiates them. ``engine.py`` is the engine.
"""
