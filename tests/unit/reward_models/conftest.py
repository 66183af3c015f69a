from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.reward_models.services import Service, serving


@pytest.fixture(scope="package")
def running() -> Iterator[tuple[Service, str]]:
    """One server for all tests; what it does is set anew for each."""
    service = Service()
    with serving(service) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[Service, str]) -> Service:
    vars(running[0]).update(vars(Service()))  # back to how it began
    return running[0]


@pytest.fixture
def url(running: tuple[Service, str], service: Service) -> str:
    return running[1]
