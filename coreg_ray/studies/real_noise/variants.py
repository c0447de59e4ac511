"""What is compared: the main variants, whose names stay, and those that may mend what is found wanting.

| word | what changes |
|---|---|
| kind, settings | `method.kind`, and other settings of `method` |
| sets | candidate sets: `union` of the votes, `label_model`, or one class each: `majority`, `truth` |
| weighted | candidates count by shares of the votes, or by the label model's posterior |
| soft | shares of all classes that are learnt: of the `votes`, or the label model's posterior, `belief` |
| unaligned | predictions are judged as they are, and not moved towards the class prior |
| calm | weak views and whole features in the place of strong views |
| last | a last stage: new heads learn, by cross-entropy, what networks and votes together say |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A way to learn from votes; the module says what each word means."""

    kind: str
    sets: str = "label_model"
    settings: dict[str, Any] = field(default_factory=dict)
    weighted: bool = False
    soft: str = ""
    unaligned: bool = False
    calm: bool = False
    last: bool = False


MAIN = {
    "majority": Variant("distil", "majority"),
    "label_model": Variant("distil", soft="belief"),
    "partial": Variant("partial", "union", {"partial": {"loss": "cc"}}),
    "coreg": Variant("coreg", "union"),  # as a run without any preset has it
    "truth": Variant("distil", "truth"),
}
DEFAULT = "coreg_calm"  # what `default` is another name of, and the preset `photos` sets

UNMIXED = {"mixup_alpha": 0.01}  # shares of nearly 0 or 1
WEIGHTED = Variant("coreg", weighted=True)
MENDED = {
    "coreg_weighted_union": Variant("coreg", "union", weighted=True),
    "coreg_weighted": WEIGHTED,
    "coreg_calm": replace(WEIGHTED, calm=True),
    "coreg_unmixed": replace(WEIGHTED, calm=True, settings=UNMIXED),
    "coreg_last": replace(WEIGHTED, last=True),
    "coreg_calm_last": replace(WEIGHTED, calm=True, last=True),
    "coreg_unmixed_last": replace(WEIGHTED, calm=True, settings=UNMIXED, last=True),
    "label_model_last": Variant("distil", soft="belief", last=True),
    "soft_votes": Variant("distil", soft="votes"),
    "confident": Variant("distil", soft="belief", settings={"distil": {"confidence": 0.5}}),
    "dividemix_weighted": Variant("dividemix", weighted=True),
    "pico_weighted": Variant("pico", weighted=True),
    "alim_weighted": Variant("pico", weighted=True, settings={"pico": {"importance": "onehot"}}),
    "proden_weighted": Variant("partial", weighted=True, settings={"partial": {"loss": "proden"}}),
    "crdpll_weighted": Variant("partial", weighted=True),
    "elr_weighted": Variant("elr", weighted=True),
    "ill": Variant("ill"),
    "coreg_confident": replace(WEIGHTED, settings={"clean": "confident"}),
    "without_contrast": replace(WEIGHTED, settings={"contrast_weight": 0.0, "prototype_weight": 0.0}),
    "without_guesses": replace(WEIGHTED, settings={"lambda_u": 0.0}),
    "without_alignment": replace(WEIGHTED, unaligned=True),
    "without_mixup": replace(WEIGHTED, settings=UNMIXED),
    "annotators_prior": replace(WEIGHTED, settings={"prior": "annotator"}),
    "strict": replace(WEIGHTED, settings={"clean_threshold": 0.8}),
    "long_warm_up": replace(WEIGHTED, settings={"warmup_epochs": 12}),
    "fast": replace(WEIGHTED, settings={"learning_rate": 0.06}),
    "slow": replace(WEIGHTED, settings={"learning_rate": 0.007}),
    "warm_up_alone": replace(WEIGHTED, settings={"warmup_epochs": 20}),
}
VARIANTS = {**MAIN, **MENDED, "default": MENDED[DEFAULT]}
