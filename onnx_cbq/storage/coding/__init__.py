"""How an archive codes what an ONNX file holds.

wire        where the numbers lie in the bytes of a file
numbers     32-bit floats and integers: byte planes, zstandard
parameters  what is known about the codes: grids of the channels, predictors of the layers
ans         codes by asymmetric numeral systems, with what `context` expects and `density` makes of it
huffman     codes by Huffman, to compare
fitting     chooses the parameters
container   header, sections, limits
"""
