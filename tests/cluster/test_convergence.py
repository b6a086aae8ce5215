"""Whatever is lost, late, repeated, restarted or frozen, all nodes come to agree, and no stage is left over."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.cluster_model import MODEL, Cluster

NAMES = "abc"
HEAL_S = 10
node = st.sampled_from(NAMES)


class Convergence(RuleBasedStateMachine):
    """Three nodes; any of them may believe that it is the placer."""

    @initialize()
    def begin(self) -> None:
        self.cluster = Cluster(NAMES)

    @rule(placer=node, ring=st.permutations(NAMES).flatmap(lambda order: st.integers(1, 3).map(lambda n: order[:n])))
    def place(self, placer: str, ring: list[str]) -> None:
        at = self.cluster.nodes[placer]
        if not at.frozen and all(member == placer or member in self.cluster.linked(placer) for member in ring):
            at.place(self.cluster.new_id(), ring)

    @rule(sender=node, receiver=node, count=st.integers(1, 6))
    def deliver(self, sender: str, receiver: str, count: int) -> None:
        for _ in range(count):
            self.cluster.deliver(sender, receiver)

    @rule()
    def deliver_all(self) -> None:
        if not any(at.frozen for at in self.cluster.nodes.values()):
            self.cluster.deliver_all()

    @rule(sender=node, receiver=node)
    def lose_a_fact(self, sender: str, receiver: str) -> None:
        self.cluster.lose_fact(sender, receiver)

    @rule(sender=node, receiver=node)
    def repeat(self, sender: str, receiver: str) -> None:
        self.cluster.repeat_fact(sender, receiver)

    @rule(name=node)
    def publish(self, name: str) -> None:
        if not self.cluster.nodes[name].frozen:
            self.cluster.nodes[name].publish_record()

    @rule(seconds=st.floats(0.1, 6.0))
    def pass_time(self, seconds: float) -> None:
        self.cluster.now += seconds
        for at in self.cluster.nodes.values():
            if not at.frozen:
                at.tick(self.cluster.now)

    @rule(one=node, other=node)
    def cut(self, one: str, other: str) -> None:
        self.cluster.cut_link(one, other)

    @rule(one=node, other=node)
    def join(self, one: str, other: str) -> None:
        self.cluster.join_link(one, other)

    @rule(name=node)
    def freeze(self, name: str) -> None:
        self.cluster.freeze(name)

    @rule(name=node)
    def thaw(self, name: str) -> None:
        self.cluster.thaw(name)

    @rule(name=node)
    def restart_actor(self, name: str) -> None:
        if not self.cluster.nodes[name].frozen:
            self.cluster.restart_actor(name)

    @rule(name=node)
    def restart_node(self, name: str) -> None:
        self.cluster.restart_node(name)

    @rule(name=node)
    def lose_an_engine(self, name: str) -> None:
        at = self.cluster.nodes[name]
        if at.held and not at.frozen:
            at.end(min(at.held))

    @invariant()
    def rings_that_stand_have_all_their_stages(self) -> None:
        """Check that nodes that have heard all news believe in no ring that has lost a stage."""
        for at in getattr(self, "cluster", Cluster("")).nodes.values():
            for instance in at.view.standing():
                assert at.id not in instance.node_ids or instance.instance_id in at.held

    def teardown(self) -> None:
        """Heal everything: after HEAL_S seconds all views agree, and nothing else is held."""
        if not hasattr(self, "cluster"):
            return
        self.cluster.heal(HEAL_S)
        views = [at.view.standing() for at in self.cluster.nodes.values()]
        assert views.count(views[0]) == len(views), views
        assert len(views[0]) <= 1
        expected = {member: {i.instance_id for i in views[0] if member in i.node_ids} for member in NAMES}
        assert {name: set(at.held) for name, at in self.cluster.nodes.items()} == expected
        assert not any(at.placing for at in self.cluster.nodes.values())
        assert all(at.view.newest(MODEL) == (views[0] or (None,))[0] for at in self.cluster.nodes.values())


Convergence.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestConvergence = Convergence.TestCase
