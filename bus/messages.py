"""THE PROTOCOL: every message of the control bus, one frozen class each. No sockets, no encoding here.

A `Fact` is published and may be lost; `Work` is sent to one actor; a `Reply` answers work and carries the work's
id as its cause. The tag is the dotted kind; its meaning never changes. `make protocol` prints this file as tables.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.failures import FailureCode
from cluster.membership import Member
from cluster.placement import Endpoints, Instance
from cluster.roles import Role
from cluster.shard import Shard
from cluster.topology import Link, NodeRecord, Topology
from common.limits import (
    MAX_JOIN_ENDPOINTS,
    MAX_NODES,
    Endpoint,
    HeaderText,
    ModelId,
    Name,
    Path,
    Process,
    Proof,
    Real,
    Sentence,
    Topic,
    UnixTime,
    Whole,
)

VERSION = 3  # the major version; removing, renaming or retyping a field raises it

Counters = Annotated[dict[Name, Whole], Meta(max_length=1024)]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_NODES)]
Topics = Annotated[tuple[Topic, ...], Meta(max_length=1024)]
JoinEndpoints = Annotated[tuple[Endpoint, ...], Meta(max_length=MAX_JOIN_ENDPOINTS)]
Instances = Annotated[tuple[Instance, ...], Meta(max_length=1024)]


class Header(msgspec.Struct, frozen=True):
    """Travels before every body. `cause` is the id of the work that this message belongs to."""

    version: Process
    kind: HeaderText
    id: HeaderText
    sender: Annotated[HeaderText, Meta(description="`node/actor`")]
    sequence: Annotated[Whole, Meta(description="rises by one per sender, life and topic or address, from 1")] = 0
    cause: HeaderText = ""
    time: Annotated[UnixTime, Meta(description="Unix seconds at the sender; to read, never to compare")] = 0.0
    life: Annotated[
        Whole, Meta(description="of the sender's process; rises with each, so that `sequence` may begin anew")
    ] = 0


class Message(msgspec.Struct, frozen=True, tag_field="kind"):
    """What all messages are."""


class Fact(Message, frozen=True):
    """Published: whoever subscribed hears it, nobody may depend on it."""


class LocalFact(Fact, frozen=True):
    """A fact about this node that other nodes do not hear."""


class Work(Message, frozen=True):
    """Sent to one address."""


class Query(Work, frozen=True):
    """Work that changes nothing, so that observers may send it too."""


class Reply(Message, frozen=True):
    """Sent back to the sender of some work."""


# -- requests in general


class RequestDone(Reply, frozen=True, tag="request.done"):
    """The work was done, and there is nothing to add. Sent by any actor."""


class RequestFailed(Reply, frozen=True, tag="request.failed"):
    """The work was not done. Sent by any actor, and by a hub that cannot deliver (`undeliverable`)."""

    code: Annotated[FailureCode, Meta(description="stable, for programs")]
    message: Annotated[Sentence, Meta(description="one sentence with the next step, for people")]


class RequestCancel(Work, frozen=True, tag="request.cancel"):
    """The asker gave up on the work whose id is `request`. Sent by any actor; never answered."""

    request: Name


# -- actors and hubs of one node


class ActorHello(Work, frozen=True, tag="actor.hello"):
    """An actor says that it is there, at its start and every second. Sent to its own hub; never answered."""

    name: Name
    pid: Process


class ActorUp(LocalFact, frozen=True, tag="actor.up"):
    """An actor said hello for the first time in this life of its process. Published by the hub."""

    name: Name
    pid: Process


class ActorDown(Fact, frozen=True, tag="actor.down"):
    """A process of a node ended, and with it the work that it was doing. Published by the node's supervisor."""

    name: Name
    reason: Sentence
    final: Annotated[bool, Meta(description="it will not be started again")]


class ActorStart(Work, frozen=True, tag="actor.start"):
    """Start one more engine process. Sent by the node actor to its supervisor; answered by `actor.started`."""

    threads: Annotated[Whole, Meta(description="that its matrix products may use")] = 1


class ActorStarted(Reply, frozen=True, tag="actor.started"):
    """The process runs and has said hello to the hub."""

    name: Name
    pid: Process


class ActorStop(Work, frozen=True, tag="actor.stop"):
    """End an engine process for good. Sent by the node actor to its supervisor; answered by `request.done`."""

    name: Name


class HubDescribe(Query, frozen=True, tag="hub.describe"):
    """Ask a hub what it knows. Sent by anyone; answered by `hub.state`."""


class HubActor(msgspec.Struct, frozen=True):
    """An actor as its hub sees it."""

    name: Name
    pid: Process


class HubPeer(msgspec.Struct, frozen=True):
    """A link to another hub."""

    node_id: Name
    name: Name
    endpoint: Annotated[Endpoint, Meta(description="of its hub, with its key")]
    role: Role = Role.MEMBER
    join_endpoint: Endpoint = ""


class HubState(Reply, frozen=True, tag="hub.state"):
    """A hub's actors, links, local subscriptions and counters."""

    node_id: Name
    name: Name
    endpoint: Annotated[
        Endpoint, Meta(description="where other hubs dial this one, with its key; empty: it stands alone")
    ]
    actors: Annotated[tuple[HubActor, ...], Meta(max_length=MAX_NODES)] = ()
    peers: Annotated[tuple[HubPeer, ...], Meta(max_length=MAX_NODES)] = ()
    subscriptions: Topics = ()
    counters: Counters = {}
    join_endpoint: Annotated[Endpoint, Meta(description="where other nodes knock")] = ""
    cluster: Name = ""


# -- who belongs to the cluster


class JoinRequest(Work, frozen=True, tag="join.request"):
    """A hub asks to be let in. Sent to a join port, whose key only holders of a join code know; answered by
    `join.accept`."""

    name: Name
    role: Role
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="where to dial its hub, with the key that it knocks with")]
    proof: Annotated[Proof, Meta(description="HMAC-SHA256 with the role's join key over both public keys")]


class JoinAccept(Reply, frozen=True, tag="join.accept"):
    """Who knocked is let in, and learns whom it knocked at."""

    name: Name
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="where to dial this hub, with its key")]
    proof: Annotated[Proof, Meta(description="HMAC-SHA256 with the role's join key over both public keys")]
    join_endpoints: Annotated[JoinEndpoints, Meta(description="of the members that this hub is linked to")] = ()


class MembersGet(Query, frozen=True, tag="members.get"):
    """Ask a hub whom it knows. Sent by anyone; answered by `members.state`."""


class MembersState(Reply, frozen=True, tag="members.state"):
    """Every node that a hub let in or refused, and which of them are linked."""

    cluster: Name
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_NODES)]
    linked: Names = ()


class MemberRevoke(Work, frozen=True, tag="member.revoke"):
    """Shut a node out for good. Sent to the own hub, which tells all others; answered by `request.done`."""

    node_id: Name


class MemberApprove(Work, frozen=True, tag="member.approve"):
    """Let in a node that waits for it, or that was revoked. Sent to the own hub; answered by `request.done`."""

    node_id: Name


class ClusterRotate(Work, frozen=True, tag="cluster.rotate"):
    """Make a new join code; the old one opens no join port any more. Sent to the own hub; answered by
    `cluster.rotated`.
    """


class ClusterRotated(Reply, frozen=True, tag="cluster.rotated"):
    """The names of the nodes that have the new code, and of those that could not be reached and need it by hand."""

    told: Names
    missed: Names


class ClusterCode(Work, frozen=True, tag="cluster.code"):
    """The new join code for the receiver's role. Sent by a member's hub to linked hubs; never answered."""

    code: Name


class ClusterChanged(LocalFact, frozen=True, tag="cluster.changed"):
    """The join code's file holds another one now. Published by the hub to its own node."""


# -- links between nodes


class PeerDial(Work, frozen=True, tag="peer.dial"):
    """Knock at the join port at `endpoint`, and link. Sent by discovery to its hub; answered by `request.done`."""

    endpoint: Endpoint


class PeerDrop(Work, frozen=True, tag="peer.drop"):
    """End the link to the hub at `endpoint`, or behind that join port. Sent to the own hub; answered by
    `request.done`."""

    endpoint: Endpoint


class LinkHello(Work, frozen=True, tag="link.hello"):
    """A hub introduces itself on a fresh link, and the other dials back. Sent hub to hub; never answered."""

    node_id: Name
    name: Name
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="where to dial back, with the sender's key")]
    subscriptions: Topics = ()
    heard: Annotated[bool, Meta(description="the sender has heard this hub's hello")] = False
    join_endpoint: Annotated[
        Endpoint, Meta(description="where others knock at the sender's; empty for one without a join port")
    ] = ""
    revoked: Annotated[Names, Meta(description="nodes that the sender shuts out")] = ()


class LinkSubscribe(Work, frozen=True, tag="link.subscribe"):
    """The topics that actors behind a hub want now, all of them. Sent hub to hub; never answered."""

    subscriptions: Topics


class LinkBye(Work, frozen=True, tag="link.bye"):
    """This hub leaves. Sent hub to hub; never answered."""


class PeerAuthenticated(LocalFact, frozen=True, tag="peer.authenticated"):
    """A node was let in here, or let us in. Published by the hub to its own node."""

    endpoint: Annotated[Endpoint, Meta(description="of its join port, as it was dialled; empty where it knocked here")]
    node_id: Name
    name: Name
    news: Annotated[Sentence, Meta(description="a sentence for the owner, where something is odd about it")] = ""


class PeerRefused(LocalFact, frozen=True, tag="peer.refused"):
    """A node was not let in here, or did not let us in. Published by the hub to its own node."""

    endpoint: Annotated[
        Endpoint, Meta(description="of the join port that we knocked at; empty where somebody knocked here")
    ]
    code: Annotated[FailureCode, Meta(description="`wrong_code`, `revoked`, `unapproved`, `duplicate`, `silent` …")]
    message: Sentence


class PeerUp(LocalFact, frozen=True, tag="peer.up"):
    """A link stands in both directions. Published by the hub to its own node."""

    node_id: Name
    name: Name
    endpoint: Annotated[Endpoint, Meta(description="of its hub, with its key")]
    role: Role = Role.MEMBER


class PeerDown(LocalFact, frozen=True, tag="peer.down"):
    """A link is gone. Published by the hub to its own node."""

    node_id: Name
    reason: Sentence


# -- nodes and topology


class NodeRecorded(Fact, frozen=True, tag="node.record"):
    """A node's own record with the instances that it placed; repeated, the last value wins. Published by node."""

    record: NodeRecord
    instances: Instances = ()


class LinkMeasured(Fact, frozen=True, tag="link.measured"):
    """A probe of one link. Published by topology."""

    link: Link


class LinkProbe(Query, frozen=True, tag="link.probe"):
    """Answer at once, so that the asker can time it. Sent between topology actors; answered by `request.done`."""


class TopologyChanged(LocalFact, frozen=True, tag="topology.changed"):
    """The graph as this node sees it now. Published by topology to its own node."""

    topology: Topology


class TopologyGet(Query, frozen=True, tag="topology.get"):
    """Ask for the graph. Sent by anyone to topology; answered by `topology.state`."""


class TopologyState(Reply, frozen=True, tag="topology.state"):
    """The graph, and the instances that stand on it."""

    topology: Topology
    instances: Instances = ()


# -- instances and shards


class InstanceEnsure(Work, frozen=True, tag="instance.ensure"):
    """Give me a standing instance of the model. Sent by a gateway to its node actor, and on to the placer's."""

    model_id: ModelId


class InstanceReady(Reply, frozen=True, tag="instance.ready"):
    """The instance stands and takes sessions."""

    instance: Instance


class InstanceUp(Fact, frozen=True, tag="instance.up"):
    """A new instance stands. Published by its placer."""

    instance: Instance


class InstanceDown(Fact, frozen=True, tag="instance.down"):
    """An instance lost a stage or was replaced; its sessions end. Published by whoever saw it first."""

    instance_id: Name
    epoch: Whole
    reason: Sentence


class InstanceFailed(Fact, frozen=True, tag="instance.failed"):
    """A placement did not come to stand. Published by its placer."""

    model_id: ModelId
    code: FailureCode
    message: Sentence


class ShardLoad(Work, frozen=True, tag="shard.load"):
    """Fetch and load a shard. Sent by the placer to a member's node actor; answered by `shard.loaded`."""

    instance_id: Name
    epoch: Whole
    shard: Shard


class ShardLoaded(Reply, frozen=True, tag="shard.loaded"):
    """The shard is in memory and its stage listens on the data plane."""

    actor: Annotated[Name, Meta(description="bus address of the engine")]
    engine: Name
    endpoints: Annotated[Endpoints, Meta(description="data-plane addresses, best first")]
    seconds: Real = 0.0
    resident_bytes: Whole = 0
    positions: Annotated[Whole, Meta(description="that its KV memory holds, all sessions together")] = 0
    exact_rows: Annotated[Whole, Meta(description="of a chunk, that are computed as each would be alone")] = 1


class ShardUnload(Work, frozen=True, tag="shard.unload"):
    """End a stage once its sessions are over. Sent by the placer to a member's node; answered by `request.done`."""

    instance_id: Name
    epoch: Whole


class EngineLoad(Work, frozen=True, tag="engine.load"):
    """Load a shard from local files. Sent by the node actor to an engine; answered by `shard.loaded`."""

    engine: Name
    epoch: Whole
    shard: Shard
    path: Path
    kv_bytes: Annotated[Whole, Meta(description="memory for keys and values, all sessions together")] = 0
    precision: Annotated[Name, Meta(description="`fast` or `exact`, where the engine has a choice")] = "fast"


class StageJoin(Work, frozen=True, tag="stage.join"):
    """The ring as it was placed, so that a stage can connect. Sent by the placer to every stage's engine."""

    instance: Instance


class StageDrain(Work, frozen=True, tag="stage.drain"):
    """Take no new sessions; answered by `request.done` when the last one is over. Sent by node to its engine."""


# -- downloads


class DownloadWant(Work, frozen=True, tag="download.want"):
    """Have a shard's files here, or with no shard what a gateway needs. Sent to the own download actor."""

    model_id: ModelId
    shard: Shard | None = None


class DownloadDone(Reply, frozen=True, tag="download.done"):
    """The files are here and verified."""

    path: Annotated[Path, Meta(description="what an engine opens")]
    folder: Annotated[Path, Meta(description="where tokeniser and template lie")]


class DownloadProgress(Fact, frozen=True, tag="download.progress"):
    """Bytes so far, a few times a second. Published by the download actor."""

    model_id: ModelId
    node: Name
    done_bytes: Whole
    total_bytes: Whole
    file: Path = ""


class DownloadFailed(Fact, frozen=True, tag="download.failed"):
    """A download was given up. Published by the download actor; the asker also gets `request.failed`."""

    model_id: ModelId
    node: Name
    message: Sentence


# -- sessions and observation


class SessionToken(Fact, frozen=True, tag="session.token"):
    """A token of a session, for observers only. Published by the gateway that owns the session."""

    session: Name
    index: Whole
    token: Whole
    text: Sentence = ""


class SessionFinished(Fact, frozen=True, tag="session.finished"):
    """A session is over. Published by the gateway that owns it."""

    session: Name
    reason: Name
    prompt_tokens: Whole
    completion_tokens: Whole
    seconds: Real


class EngineStats(Fact, frozen=True, tag="engine.stats"):
    """What a stage did since it was loaded, once a second while it works. Published by engines."""

    actor: Name
    model_id: ModelId
    epoch: Whole
    sessions: Whole
    forwards: Whole
    rows: Whole
    busy_seconds: Real
    dropped: Counters = {}
    waiting: Annotated[Whole, Meta(description="sessions in the queue; the first stage's")] = 0
    reused_rows: Annotated[Whole, Meta(description="positions that came out of the prefix cache")] = 0
    stored_positions: Annotated[Whole, Meta(description="positions that the prefix cache holds now")] = 0
    drafted: Annotated[Whole, Meta(description="tokens guessed ahead; the last stage's")] = 0
    accepted: Annotated[Whole, Meta(description="of those, how many came true")] = 0


class Status(Fact, frozen=True, tag="status"):
    """Where a long piece of work stands, in words. Published by anyone."""

    subject: ModelId
    text: Sentence


class Log(Fact, frozen=True, tag="log"):
    """A log line of level warning or worse. Published by any actor."""

    level: Name
    logger: Name
    text: Sentence


def kind_of(message: type[Message]) -> str:
    """The dotted kind of a message class."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, str), f"{message.__name__} has no kind"
    return tag


def _leaves(cls: type[Message]) -> list[type[Message]]:
    below = [leaf for sub in cls.__subclasses__() for leaf in _leaves(sub)]
    return below or [cls]


MESSAGES: dict[str, type[Message]] = {kind_of(leaf): leaf for leaf in _leaves(Message)}
LOCAL_KINDS = frozenset(kind for kind, message in MESSAGES.items() if issubclass(message, LocalFact))
