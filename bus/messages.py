"""THE PROTOCOL: every message of the control bus, one frozen class each.

A `Fact` is published and may be lost; `Work` is sent to one actor; a `Reply` goes back to the sender of some work and
carries the work's id as its cause. The tag is the dotted kind; its meaning never changes. `bus.wire` encodes messages,
and `make protocol` writes the tables of protocol.md from this file.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.capabilities import Engines
from cluster.failures import FailureCode
from cluster.membership import Member
from cluster.own_models import OwnModels
from cluster.placement import Endpoints, Instance
from cluster.roles import Role
from cluster.room import InstanceUse, StageUse
from cluster.shard import Shard
from cluster.topology import Link, NodeRecord, RecordNumber, Topology
from common.limits import (
    MAX_JOIN_ENDPOINTS,
    MAX_NODES,
    MAX_STAGES,
    Detail,
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

MAX_CHECKED = 1024  # sessions in one message
VERSION = 4  # the major version; removing, renaming or retyping a field raises it

Counters = Annotated[dict[Name, Whole], Meta(max_length=1024)]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_NODES)]
Topics = Annotated[tuple[Topic, ...], Meta(max_length=1024)]
JoinEndpoints = Annotated[tuple[Endpoint, ...], Meta(max_length=MAX_JOIN_ENDPOINTS)]
Instances = Annotated[tuple[Instance, ...], Meta(max_length=1024)]
StageUses = Annotated[tuple[StageUse, ...], Meta(max_length=1024)]
InstanceUses = Annotated[tuple[InstanceUse, ...], Meta(max_length=1024)]
RecordNumbers = Annotated[tuple[RecordNumber, ...], Meta(max_length=MAX_STAGES)]
CardText = Annotated[str, Meta(max_length=1 << 16)]
SessionIds = Annotated[tuple[Name, ...], Meta(max_length=MAX_CHECKED)]


class Header(msgspec.Struct, frozen=True):
    """The header that precedes every body. `cause` is the id of the work to which this message replies."""

    version: Process
    kind: HeaderText
    id: HeaderText
    sender: Annotated[HeaderText, Meta(description="`node/actor`")]
    sequence: Annotated[Whole, Meta(description="from 1, for each sender, life, and topic or address")] = 0
    cause: HeaderText = ""
    time: Annotated[UnixTime, Meta(description="Unix seconds at the sender; informative only")] = 0.0
    life: Annotated[
        Whole, Meta(description="rises with every new process of the sender; its `sequence` then starts again at 1")
    ] = 0


class Message(msgspec.Struct, frozen=True, tag_field="kind"):
    """The base class of all messages."""


class Fact(Message, frozen=True):
    """Published to all subscribers. It may be lost, so no receiver may depend on it."""


class LocalFact(Fact, frozen=True):
    """A fact that is published on its own node only."""


class Work(Message, frozen=True):
    """Sent to one address."""


class Query(Work, frozen=True):
    """Work that changes nothing; observers may send it too."""


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
    """The sender no longer wants the work with the id `request`. Sent by any actor; never answered."""

    request: Name


class RequestCheck(Query, frozen=True, tag="request.check"):
    """Ask whether the work with the id `request` is still being served. Sent by the sender of that work to the same
    actor; answered by `request.working`, or fails with `not_served`.
    """

    request: Name


class RequestWorking(Reply, frozen=True, tag="request.working"):
    """The work is being served; its reply is still to come."""


# -- actors and hubs of one node


class ActorHello(Work, frozen=True, tag="actor.hello"):
    """Registers an actor, at its start and every second. Sent to its own hub; never answered."""

    name: Name
    pid: Process


class ActorUp(LocalFact, frozen=True, tag="actor.up"):
    """A process registered as an actor for the first time. Published by the hub."""

    name: Name
    pid: Process


class ActorDown(Fact, frozen=True, tag="actor.down"):
    """A process of a node ended, and the work that it was serving with it. Published by the node's supervisor."""

    name: Name
    reason: Sentence
    final: Annotated[bool, Meta(description="the supervisor will not start it again")]


class ActorStart(Work, frozen=True, tag="actor.start"):
    """Start another engine process. Sent by the node actor to its supervisor; answered by `actor.started`."""

    threads: Annotated[Whole, Meta(description="of its matrix products")] = 1


class ActorStarted(Reply, frozen=True, tag="actor.started"):
    """The process runs and is registered with the hub."""

    name: Name
    pid: Process


class ActorStop(Work, frozen=True, tag="actor.stop"):
    """Stop an engine process for good. Sent by the node actor to its supervisor; answered by `request.done`."""

    name: Name


class HubDescribe(Query, frozen=True, tag="hub.describe"):
    """Ask a hub for its state. Sent by any actor; answered by `hub.state`."""


class HubActor(msgspec.Struct, frozen=True):
    """An actor as its hub sees it."""

    name: Name
    pid: Process
    silent_s: Annotated[Real, Meta(description="seconds since the hub heard it")] = 0.0


class HubPeer(msgspec.Struct, frozen=True):
    """A link to another hub."""

    node_id: Name
    name: Name
    endpoint: Annotated[Endpoint, Meta(description="its bus port, with its key")]
    role: Role = Role.MEMBER
    join_endpoint: Endpoint = ""


class HubState(Reply, frozen=True, tag="hub.state"):
    """A hub's actors, links, local subscriptions and counters."""

    node_id: Name
    name: Name
    endpoint: Annotated[Endpoint, Meta(description="the bus port, with the node's key; empty if the node stands alone")]
    actors: Annotated[tuple[HubActor, ...], Meta(max_length=MAX_NODES)] = ()
    peers: Annotated[tuple[HubPeer, ...], Meta(max_length=MAX_NODES)] = ()
    subscriptions: Topics = ()
    counters: Counters = {}
    join_endpoint: Annotated[Endpoint, Meta(description="the join port; empty if there is none")] = ""
    cluster: Name = ""


# -- membership


class JoinRequest(Work, frozen=True, tag="join.request"):
    """Ask to join a cluster. Sent to a join port, whose key only holders of a join code know; answered by
    `join.accept`.
    """

    name: Name
    role: Role
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="the bus port of its hub, with the key of this connection")]
    proof: Annotated[Proof, Meta(description="HMAC-SHA256 of both public keys with the role's join key")]


class JoinAccept(Reply, frozen=True, tag="join.accept"):
    """The node that asked may link to this hub, which proves that it belongs to the cluster."""

    name: Name
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="the bus port of this hub, with its key")]
    proof: Annotated[Proof, Meta(description="HMAC-SHA256 of both public keys with the role's join key")]
    join_endpoints: Annotated[JoinEndpoints, Meta(description="of the members to which this hub is linked")] = ()


class MembersGet(Query, frozen=True, tag="members.get"):
    """Ask a hub for the nodes that it has on file. Sent by any actor; answered by `members.state`."""


class MembersState(Reply, frozen=True, tag="members.state"):
    """All nodes that a hub has on file, approved, pending or revoked, and the ids of those that are linked."""

    cluster: Name
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_NODES)]
    linked: Names = ()


class MemberRevoke(Work, frozen=True, tag="member.revoke"):
    """Revoke a node's key. Sent to the node's own hub, which sends it to all others; answered by `request.done`."""

    node_id: Name


class MemberApprove(Work, frozen=True, tag="member.approve"):
    """Approve a pending or revoked node. Sent to the node's own hub, which sends it to all others; answered by
    `request.done`.
    """

    node_id: Name


class ClusterRotate(Work, frozen=True, tag="cluster.rotate"):
    """Make a new join code, which replaces the old one. Sent to the node's own hub; answered by `cluster.rotated`."""


class ClusterRotated(Reply, frozen=True, tag="cluster.rotated"):
    """There is a new join code. Members that are not linked now need it by hand."""

    updated: Annotated[Names, Meta(description="names of the nodes that received it")]
    unreachable: Annotated[Names, Meta(description="names of the approved nodes that did not")]


class ClusterCode(Work, frozen=True, tag="cluster.code"):
    """The new join code, for the receiver's role. Sent by a member's hub to linked hubs; never answered."""

    code: Name


class ClusterChanged(LocalFact, frozen=True, tag="cluster.changed"):
    """The file of the join code has a new one. Published by the hub to its own node."""


# -- links between nodes


class PeerDial(Work, frozen=True, tag="peer.dial"):
    """Join at the join port `endpoint`, then link. Sent by discovery to its hub; answered by `request.done` at once."""

    endpoint: Endpoint


class PeerDrop(Work, frozen=True, tag="peer.drop"):
    """End the link to the hub at the bus port or join port `endpoint`. Sent to the node's own hub; answered by
    `request.done`.
    """

    endpoint: Endpoint


class LinkHello(Work, frozen=True, tag="link.hello"):
    """Introduces a hub on a new connection, and the other hub connects back. Sent hub to hub; never answered."""

    node_id: Name
    name: Name
    incarnation: Whole
    endpoint: Annotated[Endpoint, Meta(description="the sender's bus port, with its key")]
    subscriptions: Topics = ()
    hello_received: Annotated[bool, Meta(description="the sender has received the receiver's hello")] = False
    join_endpoint: Annotated[Endpoint, Meta(description="the sender's join port; empty if it has none")] = ""
    revoked: Annotated[Names, Meta(description="ids of the nodes that the sender revoked")] = ()
    connection: Annotated[
        Whole, Meta(description="of the connection that carries it; rises with each one that the sender's node makes")
    ] = 0


class LinkSubscribe(Work, frozen=True, tag="link.subscribe"):
    """All topics that actors of the sender's node subscribe to now. Sent hub to hub; never answered."""

    subscriptions: Topics


class LinkBye(Work, frozen=True, tag="link.bye"):
    """The sender ends the link. Sent hub to hub; never answered."""


class PeerAuthenticated(LocalFact, frozen=True, tag="peer.authenticated"):
    """A node joined at this one, or accepted it. Published by the hub to its own node."""

    endpoint: Annotated[Endpoint, Meta(description="its join port, if this node joined there; else empty")]
    node_id: Name
    name: Name
    warning: Annotated[Sentence, Meta(description="for the owner: its name was known with another key")] = ""


class PeerRefused(LocalFact, frozen=True, tag="peer.refused"):
    """A node was refused at this one, or refused it. Published by the hub to its own node."""

    endpoint: Annotated[Endpoint, Meta(description="its join port, if this node asked to join there; else empty")]
    code: Annotated[FailureCode, Meta(description="`wrong_code`, `revoked`, `unapproved`, `duplicate`, `silent` …")]
    message: Sentence


class PeerUp(LocalFact, frozen=True, tag="peer.up"):
    """A link is up in both directions. Published by the hub to its own node."""

    node_id: Name
    name: Name
    endpoint: Annotated[Endpoint, Meta(description="its bus port, with its key")]
    role: Role = Role.MEMBER


class PeerDown(LocalFact, frozen=True, tag="peer.down"):
    """A link is down. Published by the hub to its own node."""

    node_id: Name
    reason: Sentence
    name: Name = ""


# -- nodes and topology


class NodeRecorded(Fact, frozen=True, tag="node.record"):
    """A node's record, and what it holds. Repeated; the last value counts. Published by node."""

    record: NodeRecord
    instances: Annotated[Instances, Meta(description="those that the node has a joined stage of")] = ()
    placing: Annotated[Names, Meta(description="ids of the instances that the node is placing")] = ()
    models: Annotated[OwnModels, Meta(description="in folders of the node, so that no other node can fetch them")] = ()
    uses: Annotated[StageUses, Meta(description="of the node's stages, as of a second ago")] = ()


class LinkMeasured(Fact, frozen=True, tag="link.measured"):
    """The result of probing one link. Published by topology."""

    link: Link


class LinkProbe(Query, frozen=True, tag="link.probe"):
    """Measure a round trip. Sent between topology actors; answered by `request.done` at once."""


class TopologyChanged(LocalFact, frozen=True, tag="topology.changed"):
    """The topology as this node sees it now. Published by topology to its own node."""

    topology: Topology


class TopologyGet(Query, frozen=True, tag="topology.get"):
    """Ask for the topology. Sent by any actor to topology; answered by `topology.state`."""


class TopologyState(Reply, frozen=True, tag="topology.state"):
    """The topology, and the instances that are up."""

    topology: Topology
    instances: Instances = ()
    uses: Annotated[InstanceUses, Meta(description="for each instance, how it is used")] = ()


# -- instances and shards


class InstanceEnsure(Work, frozen=True, tag="instance.ensure"):
    """Get or make an instance of the model. Sent by a gateway to its node actor, and by that one to the placer;
    answered by `instance.ready`.
    """

    model_id: Annotated[ModelId, Meta(description="an id, an alias, or the name of a model on the hub")]


class InstanceReady(Reply, frozen=True, tag="instance.ready"):
    """The instance is up and accepts sessions."""

    instance: Instance


class InstanceUnload(Work, frozen=True, tag="instance.unload"):
    """End what stands of a model. Sent by a command to the node actor of a node here; answered by `request.done`, or
    fails with `busy` if a session runs or waits on it.
    """

    model_id: ModelId


class InstanceUp(Fact, frozen=True, tag="instance.up"):
    """A new instance is up. Published by its placer; the records of its stages' nodes repeat it."""

    instance: Instance
    joined: Annotated[
        RecordNumbers, Meta(description="for each stage, the number of its node's first record to list the instance")
    ]


class InstanceDown(Fact, frozen=True, tag="instance.down"):
    """A stage of an instance ended, and with it the instance. Published by the stage's node, or by the member that
    had the instance unloaded.
    """

    instance_id: Name
    epoch: Whole
    reason: Sentence


class InstanceFailed(Fact, frozen=True, tag="instance.failed"):
    """An instance could not be made. Published by its placer."""

    model_id: ModelId
    code: FailureCode
    message: Sentence


class InstanceJoin(Work, frozen=True, tag="instance.join"):
    """All shards of the instance are loaded; its stages connect. Sent by the placer to the node actor of each stage;
    answered by `instance.joined`.
    """

    instance: Instance


class InstanceJoined(Reply, frozen=True, tag="instance.joined"):
    """The node's stage has its place in the ring."""

    number: Annotated[RecordNumber, Meta(description="of the node's first record to list the instance")]


class ShardLoad(Work, frozen=True, tag="shard.load"):
    """Fetch and load a shard. Sent by the placer to a member's node actor; answered by `shard.loaded`."""

    instance_id: Name
    epoch: Whole
    shard: Shard
    requested: Annotated[RecordNumber, Meta(description="of the placer's first record to list it as being placed")]
    card: Annotated[CardText, Meta(description="the model's card as JSON; empty: the member's own card")] = ""
    fingerprint: Annotated[Name, Meta(description="of the files of a model that members have in own folders")] = ""
    auto_bits: Annotated[
        Whole,
        Meta(description="to how many bits to round if the member runs with `--quantize auto`; 0: it decides"),
    ] = 0


class ShardLoaded(Reply, frozen=True, tag="shard.loaded"):
    """The shard is in memory and its stage listens on the data plane."""

    actor: Annotated[Name, Meta(description="bus address of the engine")]
    engine: Name
    endpoints: Annotated[Endpoints, Meta(description="endpoints on the data plane, best first")]
    seconds: Real = 0.0
    resident_bytes: Whole = 0
    positions: Annotated[Whole, Meta(description="capacity of its KV memory, for all sessions together")] = 0
    exact_rows: Annotated[Whole, Meta(description="rows of a chunk that are computed exactly as each alone")] = 1
    saves: Annotated[bool, Meta(description="whether its keys and values can be copied, for the prefix cache")] = True
    quantized_bits: Annotated[Whole, Meta(description="to how many bits it rounded float matrices; 0: none")] = 0
    why: Annotated[Detail, Meta(description="why it runs on this engine")] = ""


class ShardUnload(Work, frozen=True, tag="shard.unload"):
    """End a stage when its sessions are over. Sent by a member to a member's node; answered by `request.done`."""

    instance_id: Name
    epoch: Whole
    if_idle: Annotated[bool, Meta(description="only if it has no session; else it goes on, and this fails: `busy`")] = (
        False
    )


class EngineLoad(Work, frozen=True, tag="engine.load"):
    """Load a shard from local files. Sent by the node actor to an engine; answered by `shard.loaded`.

    `engine` is the node's own; the process that loads may take another of `engines` for this model.
    """

    engine: Name
    instance_id: Name
    epoch: Whole
    shard: Shard
    path: Path
    placer: Annotated[Name, Meta(description="id of the node that requested the stage")]
    requested: Annotated[RecordNumber, Meta(description="of the placer's first record to list it as being placed")]
    kv_bytes: Annotated[Whole, Meta(description="memory for keys and values, for all sessions together")] = 0
    precision: Annotated[Name, Meta(description="`fast`, `exact` or `invariant`, if the engine has a choice")] = "fast"
    quantize_bits: Annotated[Whole, Meta(description="to how many bits to round float matrices; 0: not at all")] = 0
    engines: Annotated[Engines, Meta(description="what the node measured, if the model decides between them")] = ()


class EngineDescribe(Query, frozen=True, tag="engine.describe"):
    """Ask an engine what it holds. Sent by its node actor, once a second; answered by `engine.state`."""


class EngineState(Reply, frozen=True, tag="engine.state"):
    """What an engine has loaded or is loading, and the instance that it joined."""

    load: EngineLoad | None = None
    joined: Instance | None = None
    idle_s: Annotated[
        Whole, Meta(description="since its last session, rounded up; 0 while one runs, waits, or is still to come")
    ] = 0
    private_bytes: Annotated[Whole, Meta(description="memory that is free once the process has ended")] = 0


class StageJoin(Work, frozen=True, tag="stage.join"):
    """The whole instance, so that a stage can connect to its neighbors. Sent by a node actor to its engine; answered by
    `request.done`.
    """

    instance: Instance


class StageDrain(Work, frozen=True, tag="stage.drain"):
    """Accept no more sessions. Sent by the node actor to an engine; answered by `request.done` after the last."""

    if_idle: Annotated[bool, Meta(description="only if it has no session; else it goes on, and this fails: `busy`")] = (
        False
    )


# -- downloads


class DownloadWant(Work, frozen=True, tag="download.want"):
    """Fetch the files of a shard, or without a shard those that a gateway needs. Sent to the node's own download
    actor; answered by `download.done`.
    """

    model_id: ModelId
    shard: Shard | None = None
    card: Annotated[CardText, Meta(description="the model's card as JSON; empty: the node's own card")] = ""


class DownloadDone(Reply, frozen=True, tag="download.done"):
    """The files are here and verified."""

    path: Annotated[Path, Meta(description="what an engine loads")]
    folder: Annotated[Path, Meta(description="the folder of tokenizer and chat template")]


class ModelDescribe(Work, frozen=True, tag="model.describe"):
    """Make the card of a model on the hub from its settings or header. Sent to the node's own download actor; answered
    by `model.described`.
    """

    name: Annotated[ModelId, Meta(description="`ORG/REPO`, with `@REVISION` and `:QUANTIZATION` if wanted, or an id")]
    context: Annotated[Whole, Meta(description="positions of a chat, for which a quantization is chosen")] = 0


class ModelDescribed(Reply, frozen=True, tag="model.described"):
    """The card of the model, with its sizes."""

    card: Annotated[CardText, Meta(description="as JSON")]
    why: Annotated[Sentence, Meta(description="why this quantization was chosen; empty if there was no choice")] = ""


class DownloadProgress(Fact, frozen=True, tag="download.progress"):
    """Progress of a download, a few times a second. Published by the download actor."""

    model_id: ModelId
    node: Name
    done_bytes: Whole
    total_bytes: Whole
    file: Path = ""


class DownloadFailed(Fact, frozen=True, tag="download.failed"):
    """A download failed. Published by the download actor; the sender of `download.want` also gets `request.failed`."""

    model_id: ModelId
    node: Name
    message: Sentence


# -- sessions and observation


class SessionToken(Fact, frozen=True, tag="session.token"):
    """One token of a session, for observers only. Published by the gateway that owns the session."""

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


class SessionCheck(Work, frozen=True, tag="session.check"):
    """Ask how far these sessions are on a stage; without any, whether it lives. Sent by the gateway that owns them to
    engines, for sessions that have been silent; answered by `session.states`.
    """

    sessions: Annotated[SessionIds, Meta(description="ids, 16 hexadecimal digits each")] = ()


class SessionState(msgspec.Struct, frozen=True):
    """A session as a stage knows it."""

    session: Name
    waiting: Annotated[bool, Meta(description="in the queue; first stage only")] = False
    active: Annotated[bool, Meta(description="steps of it wait here or are being computed")] = False
    frames: Annotated[Whole, Meta(description="received for it so far, after its opening")] = 0
    sampled: Annotated[Whole, Meta(description="position after the last token sampled; last stage only")] = 0


class SessionStates(Reply, frozen=True, tag="session.states"):
    """The sessions that the stage knows, of those that were asked for. It is sent also while a pass runs."""

    turns: Annotated[Whole, Meta(description="how many times the stage has handled all frames that had come")]
    sessions: Annotated[tuple[SessionState, ...], Meta(max_length=MAX_CHECKED)] = ()


class EngineStats(Fact, frozen=True, tag="engine.stats"):
    """Totals of a stage since it was loaded, once a second while it works. Published by engines."""

    actor: Name
    model_id: ModelId
    epoch: Whole
    sessions: Whole
    forwards: Whole
    rows: Whole
    busy_seconds: Real
    dropped: Counters = {}
    waiting: Annotated[Whole, Meta(description="sessions in the queue; first stage only")] = 0
    reused_rows: Annotated[Whole, Meta(description="positions taken from the prefix cache")] = 0
    stored_positions: Annotated[Whole, Meta(description="positions in the prefix cache now")] = 0
    drafted: Annotated[Whole, Meta(description="tokens drafted; last stage only")] = 0
    accepted: Annotated[Whole, Meta(description="drafted tokens that were accepted")] = 0


class Status(Fact, frozen=True, tag="status"):
    """Progress of some long work, as a sentence. Published by any actor."""

    subject: ModelId
    text: Sentence


class Log(Fact, frozen=True, tag="log"):
    """A log record of level WARNING or above. Published by any actor."""

    level: Name
    logger: Name
    text: Sentence


def kind_of(message: type[Message]) -> str:
    """Return the dotted kind of a message class."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, str), f"{message.__name__} has no kind"
    return tag


def _leaves(cls: type[Message]) -> list[type[Message]]:
    below = [leaf for sub in cls.__subclasses__() for leaf in _leaves(sub)]
    return below or [cls]


MESSAGES: dict[str, type[Message]] = {kind_of(leaf): leaf for leaf in _leaves(Message)}
LOCAL_KINDS = frozenset(kind for kind, message in MESSAGES.items() if issubclass(message, LocalFact))
