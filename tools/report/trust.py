"""The report's section "How far to trust this": a sentence for each figure that was computed."""

from statistics import fmean
from typing import Any

from tools.report.markup import Markup, element, join, percent
from tools.report.results import Results


def section(run: Results) -> Markup:
    """Return the sentences as a list."""
    checks = (_leaks(run.evaluation), _labels(run.labels_audit), _confidence(run), _robustness(run.robustness))
    return element("ul", join(element("li", sentence) for sentences in checks for sentence in sentences))


def _leaks(evaluation: dict[str, Any]) -> list[str]:
    found = evaluation.get("test_duplicates")
    if found is None:
        return ["Test images were not compared with the training images (evaluate.duplicates: none)."]
    if not found:
        return ["No test image repeats a training image."]
    of_images = f"{found:,} of {evaluation['test_images']:,} test images"
    if "accuracy_without_duplicates" not in evaluation:
        return [f"All {of_images} repeat a training image: the test accuracy measures memory."]
    without = percent(evaluation["accuracy_without_duplicates"])
    return [f"{of_images} repeat a training image, exactly or nearly. Without them the accuracy is {without}."]


def _confidence(run: Results) -> list[str]:
    figures, sentences = run.evaluation, []
    if "temperature" in figures:
        before, after = (figures[f"{name}.calibration_error"] for name in ("uncalibrated", "calibrated"))
        used = run.chosen["evaluate"].get("temperature") == "validation"
        sentences.append(
            f"On average the network's confidence differs from its accuracy by {percent(before)} (calibration "
            "error). "
            f"A temperature of {figures['temperature']:.2f}, fitted on validation, makes that {percent(after)}. "
            + (
                "The predictions use it."
                if used
                else "The predictions do not use it (evaluate.temperature: none)."
            )
        )
    if "abstain.accuracy" in figures:
        coverage, accuracy = (percent(figures[f"abstain.{name}"]) for name in ("coverage", "accuracy"))
        target = percent(1 - run.chosen["evaluate"]["abstain"])
        sentences.append(
            f"The model answers on {coverage} of the test images, where its confidence is at least "
            f"{figures['abstain.threshold']:.3f}. {accuracy} of these answers are right; the target, on "
            f"validation, was {target}."
        )
    return sentences


def _labels(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["The labels were not audited. To audit them: python -m tools.audit labels."]
    return [f"{found['suspicious_test']:,} of {found['audited_test']:,} test labels are suspicious (tools.audit)."]


def _robustness(accuracy: dict[str, list[float]] | None) -> list[str]:
    if accuracy is None:
        return ["Accuracy on corrupted pictures was not measured. To measure it: python -m tools.robustness."]
    corrupted = {name: fmean(values) for name, values in accuracy.items() if name != "none" and values}
    if not corrupted:
        return []
    worst = min(corrupted, key=lambda name: corrupted[name])
    return [
        f"On corrupted test images the accuracy is {percent(fmean(corrupted.values()))} on average over "
        f"{len(corrupted)} corruptions. The worst is {worst}: {percent(corrupted[worst])}."
    ]
