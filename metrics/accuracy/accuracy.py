"""
Accuracy of short answers: right if it is one of the references, in any case, without marks and spaces at its ends.

    "Red."  of ["red"] -> right        "dark red" of ["red"] -> wrong

Nothing else is forgiven: an answer that has to be found in a sentence is not a short answer.
"""

import datasets
import evaluate
import numpy as np

from .bootstrap import intervals


MARKS = " \t\n.,;:!?\"'"


def same(said: str, right: list[str]) -> bool:
    return said.strip(MARKS).lower() in {text.strip(MARKS).lower() for text in right}


class Accuracy(evaluate.Metric):
    """`references`: for each question the answers that are right; `kinds`: what each asks for ("count"), to score each kind too."""

    def _info(self) -> evaluate.MetricInfo:
        texts = datasets.Sequence(datasets.Value("string"))
        features = {"predictions": datasets.Value("string"), "references": texts}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(
        self, predictions: list[str], references: list[list[str]], kinds: list[str] | None = None
    ) -> dict[str, float | list[float]]:
        """
        {"accuracy"} and, with kinds, {"accuracy_<kind>"}, each with a `_ci95` by bootstrap over questions. Raises ValueError for
        kinds of another number of questions.
        """
        if kinds is not None and len(kinds) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions, but kinds of {len(kinds)} questions")
        right = np.array([same(*pair) for pair in zip(predictions, references, strict=True)], dtype=float)[:, None]
        asked = {"accuracy": np.ones(len(right), dtype=bool)}
        for kind in sorted(set(kinds or ())):
            asked[f"accuracy_{kind}"] = np.array([one == kind for one in kinds])
        result = {}
        for name, chosen in asked.items():
            count = int(chosen.sum())
            (ci95,) = intervals(right[chosen], [lambda sums, count=count: sums[..., 0] / count])
            result |= {name: float(right[chosen].mean()), f"{name}_ci95": ci95}
        return result
