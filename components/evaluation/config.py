"""Settings of evaluation."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from foundry.settings import Settings
from training.probes.measures import MEASURES
from training.probes.options import ProbeOptions

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Margin = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Bound = Annotated[float, Field(allow_inf_nan=False)]
HEADLINE = "headline"
"""In the gates, the measure that summaries use: k-NN top-1 with labels, mIoU with masks only, else copy retrieval."""


class GateSettings(Settings):
    """What a network must reach. Accuracies and recalls are fractions."""

    knn_margin: Share = 0.0
    """k-NN top-1 must exceed random weights, raw pixels and the colour histogram by more than this."""
    miou_margin: Share = 0.0
    """The same for mIoU against random weights, where only masks are given."""
    retrieval_margin: Share = 0.0
    """Without labels: retrieval of augmented copies must exceed random weights by more than this."""
    rank_bound: Annotated[float, Field(ge=0.0)] = 8.0
    """Without labels: smallest feature rank (1 is full collapse)."""
    coherence_margin: Share = 0.0
    """Without labels: patch coherence must exceed random weights by more than this."""
    bounds: dict[str, Bound] = {}
    """What a student must reach, measure: least value, or largest for a measure that is better when smaller. headline
    stands for k-NN top-1, with masks only for mIoU, without labels for copy retrieval."""
    non_inferiority: dict[str, Margin] = {HEADLINE: 0.05}
    """How much worse than the champion a student may be for certain, measure: margin; {}: as much as it likes. On the
    400 test images of the sample a network as good as the champion passes 0.05 about three times in four where they
    answer every fifth image differently, and nine times in ten where it is every tenth; a smaller margin needs more
    images."""
    superiority: str = ""
    """Measure in which a student must be better than the champion for certain; empty: none."""
    certainty: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """Of comparisons with the champion: one-sided, by drawing the test images again."""
    resamples: Annotated[int, Field(ge=200)] = 2000
    """How often the test images are drawn again for that."""
    minimum_images: Annotated[int, Field(ge=1)] = 100
    """Test images that a comparison with the champion needs; with fewer only a student that does the same on each of
    them is not inferior."""

    @model_validator(mode="before")
    @classmethod
    def _replaced(cls, values: Any) -> Any:
        if isinstance(values, dict) and "champion_tolerance" in values:
            raise ValueError(
                "champion_tolerance is now non_inferiority, which counts chance in and so wants a wider margin; "
                "write non_inferiority: {headline: 0.05} in its place"
            )
        return values

    @model_validator(mode="after")
    def _measures_exist(self) -> GateSettings:
        for name in (*self.bounds, *self.non_inferiority, self.superiority or HEADLINE):
            if name != HEADLINE and name not in MEASURES:
                owner, slash, plain = name.rpartition("/")
                near = difflib.get_close_matches(plain, [HEADLINE, *MEASURES], n=1)
                hint = f"did you mean '{owner}{slash}{near[0]}'?" if near else f"there are: {', '.join(MEASURES)}"
                raise ValueError(f"no measure is called '{name}'; {hint}")
        return self


class EnergySettings(Settings):
    """What the report's estimate of energy rests on."""

    watts_a_core: Annotated[float, Field(gt=0.0)] = 10.0
    """Rated power of a CPU core in watts: its share of a processor's thermal design power."""
    watts_a_gpu: Annotated[float, Field(ge=0.0)] = 0.0
    """Board power of a GPU in watts; 0: by its name."""
    pue: Annotated[float, Field(ge=1.0)] = 1.0
    """Power usage effectiveness of the building: what it draws for what its machines draw."""
    grams_a_kwh: Annotated[float, Field(ge=0.0)] = 0.0
    """Grams of CO2 equivalent of a kWh of the grid; 0: emissions are not told."""


class EvaluationConfig(ProbeOptions):
    """Section ``evaluation`` of params.yaml."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; the probes themselves run on the CPU."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Batches computed at once on a CPU, each on one core (0: as many as there are cores). Never changes a figure."""
    energy: EnergySettings = EnergySettings()
    gates: GateSettings = GateSettings()
