"""The test loss after fine-tuning on a number of examples: the points of the curves that studies rank by."""

from collections.abc import Sequence

from lensjax.measure.measurement import FINETUNE, MEASUREMENTS, Measured, Measurement, Subject


@MEASUREMENTS.register(FINETUNE)
class FinetunedLoss(Measurement):
    """Fine-tuning runs, which every study makes: on every rung with every seed, and on 0 examples the test alone."""

    title, label, help = "Fine-tuning", "", ""
    by_default = True

    def seeds_on(self, rung: int, seeds: Sequence[int]) -> Sequence[int]:
        return seeds

    def measure(self, subject: Subject) -> Measured:
        result = subject.fine_tune()
        return Measured(flops=result.flops, error=result.error)
