"""hloc's steps as functions, with hloc's names and files, on this package's engine.

    >>> from sfm_matchers.hloc.steps.matching import extract_features    # doctest: +SKIP
    >>> extract_features(image_dir="photos", export_dir="outputs", conf="sift")    # doctest: +SKIP

`matching`, `pairs` and `models` hold the steps. To import this package loads nothing heavy, and
hloc need not be installed.
"""
