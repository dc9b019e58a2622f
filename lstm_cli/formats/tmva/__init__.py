"""TMVA's weights files: XML with one element for each layer and one for each matrix.

Start at `reader` and `writer`. `document` is the XML tree, and `slots` finds each gate's matrices.
"""
