"""The table of all cases: importing the tables by subject fills it."""

from . import (
    activation_cases as activation_cases,
    attention_cases as attention_cases,
    control_cases as control_cases,
    convolution_cases as convolution_cases,
    dense_cases as dense_cases,
    factor_cases as factor_cases,
    normalization_cases as normalization_cases,
    recurrent_cases as recurrent_cases,
    recurrent_convolution_cases as recurrent_convolution_cases,
    sharing_cases as sharing_cases,
)
from .building import TABLE

CASES = list(TABLE.values())
