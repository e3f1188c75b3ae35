"""Dropout and Gaussian noise on tail features, for ltcore."""

from ltcore_feature_noise.functional import dropped as dropped
from ltcore_feature_noise.functional import noisy as noisy
from ltcore_feature_noise.method import FeatureDropout as FeatureDropout
from ltcore_feature_noise.method import FeatureDropoutOptions as FeatureDropoutOptions
from ltcore_feature_noise.method import FeatureNoise as FeatureNoise
from ltcore_feature_noise.method import FeatureNoiseOptions as FeatureNoiseOptions

__all__ = ["FeatureDropout", "FeatureDropoutOptions", "FeatureNoise", "FeatureNoiseOptions", "dropped", "noisy"]
