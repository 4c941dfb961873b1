"""A blocking check of an asset, in the two forms in which it can run.

What belongs here: the form. What does not: what is checked (`checks.gates`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from mirror_realm_assets.resources.library import LibraryResource

Look = Callable[[LibraryResource, str], dg.AssetCheckResult]


@dataclass(frozen=True)
class Gate:
    """A check that what depends on its asset waits for.

    Attributes:
        asset: its asset.
        name: its name.
        description: what passes, for people.
        look: given the library and a partition key, says whether it passes.
    """

    asset: str
    name: str
    description: str
    look: Look

    @property
    def spec(self) -> dg.AssetCheckSpec:
        """For an asset that checks itself in its step: on a cluster a step is a pod, which takes longer to start."""
        return dg.AssetCheckSpec(self.name, asset=self.asset, description=self.description, blocking=True)

    def result(self, library: LibraryResource, key: str) -> dg.AssetCheckResult:
        """What a step that checks itself returns."""
        found = self.look(library, key)
        return dg.AssetCheckResult(
            passed=found.passed, check_name=self.name, description=found.description, metadata=found.metadata
        )

    @property
    def definition(self) -> dg.AssetChecksDefinition:
        """As a step of its own, which can also be run by itself."""
        look = self.look

        @dg.asset_check(asset=self.asset, name=self.name, blocking=True, description=self.description)
        def _check(context: dg.AssetCheckExecutionContext, library: LibraryResource) -> dg.AssetCheckResult:
            return look(library, context.partition_key)

        return _check
