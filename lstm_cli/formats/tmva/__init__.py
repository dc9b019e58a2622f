"""TMVA's weights files: XML with one element for each layer and one for each matrix.

Start at `reader` and `writer`. `document` is the XML tree, `slots` finds each gate's matrices, and
`header` is what a written file has around its layers.
"""
