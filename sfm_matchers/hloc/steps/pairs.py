"""hloc's steps that choose pairs: each writes a pair list, and returns the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import Pair, write_pairs
from sfm_matchers.hloc.steps.inputs import choose_names, names_in
from sfm_matchers.mapping.models import read_model
from sfm_matchers.pairs.policies import (
    covisibility_pairs,
    exhaustive_pairs,
    pose_pairs,
    query_pairs,
)


def pairs_from_exhaustive(
    *,
    output: str | Path,
    image_list: str | Path | None = None,
    features: str | Path | None = None,
    ref_list: str | Path | None = None,
    ref_features: str | Path | None = None,
) -> list[Pair]:
    """Every image with every other, or each with every reference image.

    Args:
        output: the pair list to write.
        image_list: file, or pattern of files, with names.
        features: take the names of a feature file.
        ref_list: the same for the reference images.
        ref_features: the same for the reference images.

    Raises:
        InputError: no names are given.
    """
    names = names_in(image_list, features, "--image_list or --features")
    if ref_list or ref_features:
        references = names_in(ref_list, ref_features, "--ref_list or --ref_features")
        pairs = [(name, other) for name in names for other in references]
    else:
        pairs = exhaustive_pairs(names)
    write_pairs(Path(output), pairs)
    return pairs


def pairs_from_retrieval(
    *,
    descriptors: str | Path,
    output: str | Path,
    num_matched: int,
    query_prefix: Sequence[str] | None = None,
    query_list: str | Path | None = None,
    db_prefix: Sequence[str] | None = None,
    db_list: str | Path | None = None,
    db_model: str | Path | None = None,
    db_descriptors: str | Path | None = None,
) -> list[Pair]:
    """Each query with the database images of most similar global descriptors.

    Args:
        descriptors: feature file with global descriptors.
        output: the pair list to write.
        num_matched: database images for each query.
        query_prefix: queries are the images whose names begin so.
        query_list: or those listed.
        db_prefix: the same for the database.
        db_list: the same for the database.
        db_model: or the images of a model.
        db_descriptors: those of the database, if in a file of their own.

    Raises:
        InputError: there are no queries, or no database images, with descriptors.
    """
    database_path = Path(db_descriptors or descriptors)
    in_database = list_groups(database_path)
    queries = choose_names(list_groups(Path(descriptors)), query_prefix, query_list)
    if db_model:
        registered = {image.name for image in read_model(db_model).images.values()}
        database = [name for name in in_database if name in registered]
    else:
        database = choose_names(in_database, db_prefix, db_list)
    if not queries or not database:
        raise InputError(
            f"{len(queries)} queries and {len(database)} database images have descriptors: "
            "check the prefixes, the lists and the model"
        )
    pairs = query_pairs(
        queries,
        database,
        Path(descriptors),
        num_matched,
        min_similarity=0.0,
        database_path=database_path,
    )
    write_pairs(Path(output), pairs)
    return pairs


def pairs_from_covisibility(
    *, model: str | Path, output: str | Path, num_matched: int
) -> list[Pair]:
    """Each image of a model with those that share most 3D points with it.

    Args:
        model: COLMAP model.
        output: the pair list to write.
        num_matched: pairs for each image.

    Raises:
        InputError: there are no such images.
    """
    pairs = covisibility_pairs(read_model(model), num_matched)
    if not pairs:
        raise InputError(f"{model}: no two of its images share 3D points")
    write_pairs(Path(output), pairs)
    return pairs


def pairs_from_poses(
    *,
    model: str | Path,
    output: str | Path,
    num_matched: int,
    rotation_threshold: float = 30.0,
) -> list[Pair]:
    """Each image of a model with the nearest that look the same way.

    Args:
        model: COLMAP model.
        output: the pair list to write.
        num_matched: pairs for each image.
        rotation_threshold: largest angle between their optical axes in degrees.

    Raises:
        InputError: there are no such images.
    """
    pairs = pose_pairs(read_model(model), num_matched, rotation_threshold)
    if not pairs:
        raise InputError(
            f"{model}: no two of its images look the same way within {rotation_threshold:g} degrees"
        )
    write_pairs(Path(output), pairs)
    return pairs
