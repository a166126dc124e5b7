"""Metrics in the text format of Prometheus, through its own client library (the extra `metrics`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from necrocode.errors import ConfigError
from necrocode.load import Spread
from necrocode.metrics import Figures, Metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_COUNTED = {
    "queued": "Requests that had to wait.",
    "refused": "Requests that were turned down.",
    "abandoned": "Waiters that left the queue.",
    "fenced": "Silent leases that were revoked.",
    "reaped": "Leases of dead runners that were removed.",
    "conflicts_detected": "Conflicts with what somebody else held.",
    "conflicts_avoided": "Tasks of one run that were put one after the other.",
    "retries": "Attempts that were followed by another.",
    "lost": "Attempts whose process died.",
    "errors": "Things that went wrong while the attempt went on.",
}
_SPREADS = {"p50": "0.5", "p95": "0.95", "max": "1"}


def text(metrics: Metrics) -> str:
    """The exposition, ending in a newline. Raises ConfigError when the client library is not installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise ConfigError(
            "the Prometheus format needs the package prometheus-client", hint="pip install 'necrocode[metrics]'"
        ) from None

    class Folded(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _families(metrics)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Folded())
    exposed: bytes = generate_latest(registry)
    return exposed.decode()


def _families(metrics: Metrics) -> Iterator[Metric]:
    total, concurrency = metrics.total, metrics.concurrency
    yield from _gauges({
        "leases_max": ("Most leases with a slot at once.", concurrency.max),
        "leases_mean": ("Mean number of leases with a slot.", concurrency.mean),
        "leases_live_max": ("Most leases that the ledger counted on this machine.", concurrency.live),
        "elapsed_seconds": ("From the first event to the last.", total.elapsed),
        "memory_megabytes_max": ("Most memory that a process tree used.", total.memory_mb),
        "cpu_percent_mean": ("Mean use of processors by process trees.", total.cpu_percent),
    })  # fmt: skip
    yield from _counters(total)
    yield from _spread("wait", "From the request for a lease to its grant.", total.waits)
    yield from _spread("handover", "From the end of a lease to the grant that followed.", metrics.hand_over)
    yield from _labelled("attempts", "Attempts that ended.", "status", total.attempts)
    yield from _labelled("work", "What attempts told of their work.", "what", total.work)
    for field, what in (("passes", "Passes through a phase."), ("failed", "Passes through a phase that failed.")):
        passes = {name: getattr(phase, field) for name, phase in total.phases.items()}
        yield from _labelled(f"phase_{field}", what, "phase", passes)
    seconds = {name: phase.seconds for name, phase in total.phases.items()}
    yield from _labelled("phase_seconds", "Seconds in a phase, all passes together.", "phase", seconds)


def _gauges(gauges: Mapping[str, tuple[str, float]]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, (what, value) in gauges.items():
        yield GaugeMetricFamily(f"necrocode_{name}", what, value=value)


def _counters(total: Figures) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    for name, what in _COUNTED.items():
        yield CounterMetricFamily(f"necrocode_{name}", what, value=getattr(total, name))
    yield CounterMetricFamily("necrocode_attempt_seconds", "Seconds of all attempts together.", value=total.seconds)


def _labelled(name: str, what: str, label: str, values: Mapping[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"necrocode_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    yield family


def _spread(name: str, what: str, spread: Spread) -> Iterator[Metric]:
    from prometheus_client.core import SummaryMetricFamily

    family = SummaryMetricFamily(f"necrocode_{name}_seconds", what, count_value=spread.samples, sum_value=spread.total)
    for field, quantile in _SPREADS.items():
        family.add_sample(f"necrocode_{name}_seconds", {"quantile": quantile}, getattr(spread, field))
    yield family
