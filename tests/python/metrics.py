"""Reads a server's metrics as Prometheus does."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from harness import Address, Client, Server, request, wait_until


def address(server: Server) -> Address:
    """Where the log says that the metrics are."""
    # It comes a few lines behind the address that the server is known to be ready by.
    wait_until(lambda: "Metrics at: " in server.log().rpartition("\n")[0], "the metrics address")
    found = re.search(r"Metrics at: (?:unix:([^,\n]+)|http://\[?([^\]\n]+?)\]?:(\d+)/)", server.log())
    assert found, f"no metrics address:\n{server.log()}"
    return found[1] or (found[2], int(found[3]))


class Scrape:
    """One reading: families by name, and sums over all series with certain labels."""

    def __init__(self, server: Server):
        try:
            with Client(address(server)) as client:
                answer = client.get("/metrics")
        except AssertionError as error:
            raise ConnectionError(f"no answer: {error}") from None
        assert answer.status == 200, answer
        assert answer.field("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.body.decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}

    def sum(self, name: str, **labels: str) -> float:
        """The sum over all series called `name` that have these labels, as `sum(name{...})` is in PromQL."""
        values = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert values, f"no series {name} {labels}:\n{self.text}"
        return sum(values)

    def has(self, name: str, **labels: str) -> bool:
        return any(
            sample.name == name and labels.items() <= sample.labels.items()
            for family in self.families.values()
            for sample in family.samples
        )


def wait_for(server: Server, name: str, value: float, **labels: str) -> Scrape:
    """The reading in which the sum has become `value`: a request is counted after its answer has left."""
    last: list[Scrape] = []

    def there() -> bool:
        try:
            last[:] = [Scrape(server)]
        except ConnectionError:
            # The worker that was about to answer has been killed.
            return False
        return last[0].has(name, **labels) and last[0].sum(name, **labels) == value

    try:
        wait_until(there, f"{name}{labels} is {value}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{last[0].text if last else ''}") from None
    return last[0]


__all__ = ["Scrape", "address", "request", "wait_for"]
