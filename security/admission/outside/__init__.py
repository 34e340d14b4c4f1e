"""A built Bento, or the image of one, checked from outside. Not part of any Bento.

bento        the checks, in order, and what was admitted
description  bento.yaml: one document, a closed set of keys, each with its one value
bytecode     how the bytecode in an image is made, and must be
release      what a release gives: sources, environment, interface
image        where an image runs its Bento, by its own configuration
layers       the layers of a saved image, without unpacking what nobody looks at
headers      of their archives: what engines would read otherwise is refused
"""
