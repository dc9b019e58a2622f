"""The reference engine: NumPy, one step after another, with the equations of the cells.

``step.py`` computes the gates of one step, ``recurrent.py`` runs the steps of a layer,
``backward.py`` differentiates them, and ``engine.py`` is the engine.
"""
