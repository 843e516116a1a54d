"""What is made of a COLMAP model: camera models, longer tracks, how sure it is, its place on earth.

Longer tracks are read in this order: `sparse_scene` (a model as arrays, and which points a photo
could show), `patch_location` (find a point in one more photo), `tracks` (put what was found into
the model).
"""
