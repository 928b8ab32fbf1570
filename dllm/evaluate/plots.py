"""The model card's pictures, drawn from the same record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm.errors import ConfigError


def draw(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture for every section that has one; the files.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("matplotlib", None, "an installed package: pip install 'voiceagent[bench]'") from error
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if "samplers" in data:
        written.append(_steps(data["samplers"], folder / "quality-steps.png"))
    if "timed" in data:
        written.append(_time(data["timed"], folder / "quality-time.png"))
    if "turns" in data:
        written.append(_reliability(data["turns"], folder / "turn-reliability.png"))
    if "curves" in data["about"]["training"]:
        written.append(_training(data["about"]["training"]["curves"], folder / "training.png"))
    return written


def _figure(columns: int, height: float = 4.0) -> tuple[Any, Sequence[Any]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(4.6 * columns, height), squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    # Without the date and the library's version the same numbers give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def _band(axis: Any, xs: Sequence[float], rows: Sequence[Mapping[str, Any]], factor: float, label: str) -> None:
    points = [(x, row) for x, row in zip(xs, rows, strict=True) if row["value"] is not None]
    if not points:
        return
    at = [x for x, _ in points]
    (line,) = axis.plot(at, [factor * row["value"] for _, row in points], marker="o", markersize=3, label=label)
    low, high = ([factor * row[name] for _, row in points] for name in ("low", "high"))
    axis.fill_between(at, low, high, color=line.get_color(), alpha=0.12)


_PANELS = (
    ("chrf", "chrF", 1.0),
    ("log_likelihood", "judge, nats per token", 1.0),
    ("repeating", "repeating replies, %", 100.0),
)


def _steps(section: Mapping[str, Any], path: Path) -> Path:
    figure, axes = _figure(len(_PANELS))
    for axis, (name, title, factor) in zip(axes, _PANELS, strict=True):
        for sampler, rows in section["samplers"].items():
            _band(axis, section["steps"], [row[name] for row in rows], factor, sampler)
        for sampler, row in section["left to right"].items():
            # Self-speculation writes the same text.
            if sampler == "autoregressive" and row[name]["value"] is not None:
                axis.axhline(factor * row[name]["value"], linestyle="--", linewidth=1, color="grey")
                axis.annotate(sampler, (section["steps"][0], factor * row[name]["value"]), fontsize=6, va="bottom")
        axis.set(xscale="log", xlabel="denoising steps at most", ylabel=title)
        axis.set_xticks(section["steps"], [str(step) for step in section["steps"]])
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    return _save(figure, path)


def _time(section: Mapping[str, Any], path: Path) -> Path:
    figure, axes = _figure(2)
    rows = section["rows"]
    by_steps = [row for row in rows if row["name"].endswith(("1 step", " steps"))]
    for axis, (name, title, factor) in zip(axes, _PANELS[:2], strict=True):
        _band(
            axis,
            [row["ms"]["p50"] for row in by_steps],
            [row["measures"][name] for row in by_steps],
            factor,
            "diffusion, 1 to 64 steps",
        )
        for row, marker in zip([row for row in rows if row not in by_steps], "sD^v", strict=False):
            found = row["measures"][name]
            if found["value"] is not None:
                value = factor * found["value"]
                error = [[value - factor * found["low"]], [factor * found["high"] - value]]
                axis.errorbar([row["ms"]["p50"]], [value], yerr=error, fmt=marker, capsize=3, label=row["name"])
        axis.set(xlim=(0, None), xlabel="milliseconds per reply, p50", ylabel=title)
    axes[0].legend(fontsize=7)
    return _save(figure, path)


def _reliability(section: Mapping[str, Any], path: Path) -> Path:
    figure, (axis,) = _figure(1)
    bins = section["reliability"]
    axis.plot([0, 1], [0, 1], "k:", linewidth=1)
    axis.scatter(
        [row["predicted"] for row in bins],
        [row["observed"] for row in bins],
        s=[10 + row["count"] for row in bins],
        alpha=0.6,
    )
    axis.set(xlabel="predicted: the turn is complete", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    return _save(figure, path)


def _training(curves: Mapping[str, Sequence[float | None]], path: Path) -> Path:
    losses = [name for name in curves if name not in ("tokens", "learning_rate", "loss")] or ["loss"]
    figure, (loss, rate) = _figure(2)
    for name in losses:
        points = [(at, value) for at, value in zip(curves["tokens"], curves[name], strict=True) if value is not None]
        loss.plot([at for at, _ in points], [value for _, value in points], label=name)
    loss.set(xlabel="positions", ylabel="loss, nats per token")
    loss.legend(fontsize=7)
    if "learning_rate" in curves:
        rate.plot(curves["tokens"], curves["learning_rate"])
    rate.set(xlabel="positions", ylabel="learning rate")
    return _save(figure, path)
