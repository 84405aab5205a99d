"""The same worlds, with Hypothesis making all choices: what fails is shrunk to few steps."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .world import PROFILES, World

HOSTS = st.integers(min_value=0, max_value=2)


class Machine(RuleBasedStateMachine):
    """Hosts that pass references around; each rule is one action of one of them."""

    world: World | None = None

    @initialize(
        choices=st.randoms(use_true_random=False),
        hosts=st.sampled_from([2, 3]),
        eager=st.booleans(),
        profile=st.sampled_from([*PROFILES]),
    )
    def connect(self, choices: Random, hosts: int, eager: bool, profile: str) -> None:
        self.world = World(choices, hosts=hosts, eager=eager, profile=profile)

    @rule(host=HOSTS, action=st.sampled_from([*PROFILES["everything"].weights]))
    def act(self, host: int, action: str) -> None:
        world = self.world
        assert world is not None
        getattr(world, action)(world.hosts[host % len(world.hosts)])

    @invariant()
    def all_is_well(self) -> None:
        if self.world is not None:
            self.world.check_alive()

    def teardown(self) -> None:
        """Everything must arrive, and everything must be let go."""
        if self.world is not None:
            self.world.finish()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=30,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,  # the same run each time; tests.fuzz has the seeds
    database=None,
)
