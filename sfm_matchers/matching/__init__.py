"""The matching engine: all pairs of a list through a matcher, into a file, resumable.

`plan` cuts the list into shards, `executors` have them matched by one process or many, `turns` says
how photos lie that are matched without features, `engine` matches them and puts the results
together.
"""

from sfm_matchers.matching.engine import match_features, match_images
from sfm_matchers.matching.executors import Executor, InProcess, NobodyElse, OneOf, OnRay, Processes

__all__ = [
    "Executor",
    "InProcess",
    "NobodyElse",
    "OnRay",
    "OneOf",
    "Processes",
    "match_features",
    "match_images",
]
