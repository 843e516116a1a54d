"""Which matchers there are, with what weights, under which licence."""

from __future__ import annotations

from dataclasses import dataclass

from sfm_matchers.confs import Conf, SparseConf, conf_names, load_conf
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.weights.registry import (
    all_checkpoints,
    default_source,
    needs_weights,
    subject_name,
)

NONE_NEEDED = "none needed"


@dataclass(frozen=True, repr=False)
class MatcherInfo:
    """A matcher that comes with the package.

    Attributes:
        name: of its conf; what `load_matcher` and ``--matcher`` take.
        kind: ``sparse`` or ``detector-free``.
        weights: what may be asked for as `weights`, beside a file; the first is there or has been
            released, () if only a file will do, or none are needed.
        licence: of the first weights, and of the front-end's; "none needed" where there are none.
    """

    name: str
    kind: str
    weights: tuple[str, ...]
    licence: str

    def __repr__(self) -> str:
        sources = f"weights {', '.join(self.weights)}; " if self.weights else ""
        return f"<{self.name}: {self.kind}; {sources}licence {self.licence}>"


def list_matchers() -> list[MatcherInfo]:
    """Return the matchers that come with the package, sorted by name.

    >>> list_matchers()[-2:]
    [<sift+mambaglue: sparse; weights bundled; licence Apache-2.0>, \
<superpoint+mambaglue: sparse; weights official; licence Apache-2.0, \
superpoint Magic Leap, non-commercial>]
    """
    return [_info(load_conf(name)) for name in conf_names()]


def _info(conf: Conf) -> MatcherInfo:
    sources, licence = _weights(conf.matcher, conf.options.get("features"))
    if not isinstance(conf, SparseConf):
        return MatcherInfo(conf.name, "detector-free", sources, licence)
    _, of_features = _weights(conf.features.name)
    if of_features not in (licence, NONE_NEEDED):
        licence += f", {conf.features.name} {of_features}"
    return MatcherInfo(conf.name, "sparse", sources, licence)


def _weights(name: str, features: object = None) -> tuple[tuple[str, ...], str]:
    """The sources of weights of a network or front-end, and the licence of the first."""
    if not needs_weights(name):
        return (), NONE_NEEDED
    subject = subject_name(name, NETWORKS[name].features(features) if name in NETWORKS else None)
    of_source = {one.source: one.licence for one in all_checkpoints() if one.subject == subject}
    first = default_source(subject)
    sources = sorted(of_source, key=lambda source: source != first)
    return tuple(sources), of_source[sources[0]] if sources else "that of your file"
