"""FSLwF: few-shot learning without forgetting; rare classes' weights are generated from their images, for ltcore."""

from ltcore_fslwf.functional import attended_weights, class_means, draw_exemplars, exemplar_parts, generated_logits
from ltcore_fslwf.method import BaseSampler, FSLwF, FSLwFOptions

__all__ = [
    "BaseSampler",
    "FSLwF",
    "FSLwFOptions",
    "attended_weights",
    "class_means",
    "draw_exemplars",
    "exemplar_parts",
    "generated_logits",
]
